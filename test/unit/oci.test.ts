import { describe, expect, it } from 'vitest';
import { digestOf } from '../../shared/digest.ts';
import { layerCompression, MEDIA_TYPES } from '../../shared/media-types.ts';
import { MANIFEST_MAX_BYTES, parseImageConfig, parseManifest, referencesOf } from '../../shared/oci.ts';

const descriptor = (mediaType: string, text: string) => ({ mediaType, digest: digestOf(text), size: text.length });
const CONFIG = descriptor(MEDIA_TYPES.ociConfig, '{}');
const LAYER = descriptor(MEDIA_TYPES.ociLayerGzip, 'layer');
const MANIFEST = { schemaVersion: 2, mediaType: MEDIA_TYPES.ociManifest, config: CONFIG, layers: [LAYER] };
const INDEX = {
  schemaVersion: 2,
  mediaType: MEDIA_TYPES.ociIndex,
  manifests: [descriptor(MEDIA_TYPES.ociManifest, 'm')],
};
const bytes = (value: unknown) => Buffer.from(JSON.stringify(value));

describe('parseManifest', () => {
  it('reads manifests and indexes', () => {
    const manifest = parseManifest(bytes(MANIFEST));
    expect(manifest).toMatchObject({ kind: 'manifest', config: CONFIG, layers: [LAYER] });
    expect(referencesOf(manifest)).toEqual([CONFIG, LAYER]);
    const index = parseManifest(bytes(INDEX), MEDIA_TYPES.ociIndex);
    expect(index).toMatchObject({ kind: 'index', mediaType: MEDIA_TYPES.ociIndex });
    expect(referencesOf(index)).toEqual(INDEX.manifests);
  });

  it('goes by what the sender calls it when the document is silent, and guesses last', () => {
    const { mediaType: _, ...silent } = MANIFEST;
    expect(parseManifest(bytes(silent), `${MEDIA_TYPES.dockerManifest}; charset=utf-8`).mediaType).toBe(
      MEDIA_TYPES.dockerManifest,
    );
    expect(parseManifest(bytes(silent)).mediaType).toBe(MEDIA_TYPES.ociManifest);
    expect(parseManifest(bytes({ schemaVersion: 2, manifests: [] })).kind).toBe('index');
  });

  it('keeps fields of descriptors that it does not know', () => {
    const layer = { ...LAYER, 'org.example.new': { deep: [1] }, annotations: { a: 'b' } };
    const manifest = parseManifest(bytes({ ...MANIFEST, layers: [layer], unknown: true }));
    expect(referencesOf(manifest)[1]).toEqual(layer);
  });

  it.each([
    ['sent as another type than it says', MANIFEST, MEDIA_TYPES.ociIndex],
    ['a manifest with manifests', { ...MANIFEST, manifests: [] }, undefined],
    ['an index with layers', { ...INDEX, layers: [] }, undefined],
    ['an index with a config', { ...INDEX, config: CONFIG }, MEDIA_TYPES.ociIndex],
    ['both, without saying what', { schemaVersion: 2, manifests: [], config: CONFIG, layers: [] }, undefined],
    ['a field that Go takes for another', { ...MANIFEST, Manifests: [] }, undefined],
    ['two types for those who fold case', { ...MANIFEST, MediaType: MEDIA_TYPES.ociIndex }, undefined],
    ['layers with a long s', { ...INDEX, layerſ: [] }, undefined],
    ['manifests sent as a manifest', { schemaVersion: 2, manifests: [] }, MEDIA_TYPES.ociManifest],
  ])('CVE-2021-41190: refuses a document that can be read in two ways: %s', (_what, document, contentType) => {
    expect(() => parseManifest(bytes(document), contentType)).toThrow(expect.objectContaining({ kind: 'invalid' }));
  });

  it.each([
    ['no JSON', '{'],
    ['no object', '[]'],
    ['null', 'null'],
    ['schema 1', JSON.stringify({ ...MANIFEST, schemaVersion: 1 })],
    ['a wrong digest', JSON.stringify({ ...MANIFEST, config: { ...CONFIG, digest: 'sha256:../../etc' } })],
    ['a negative size', JSON.stringify({ ...MANIFEST, layers: [{ ...LAYER, size: -1 }] })],
    ['a fractional size', JSON.stringify({ ...MANIFEST, layers: [{ ...LAYER, size: 1.5 }] })],
    ['a size beyond exact numbers', JSON.stringify({ ...MANIFEST, layers: [{ ...LAYER, size: 2 ** 53 }] })],
    ['no config', JSON.stringify({ ...MANIFEST, config: undefined })],
    ['annotations that are no texts', JSON.stringify({ ...MANIFEST, annotations: { a: 1 } })],
    ['too many layers', JSON.stringify({ ...MANIFEST, layers: Array(10_001).fill(LAYER) })],
  ])('refuses %s', (_what, text) => {
    expect(() => parseManifest(Buffer.from(text))).toThrow(expect.objectContaining({ kind: 'invalid' }));
  });

  it('refuses bytes that are no UTF-8, what is too large, and types that it does not know', () => {
    expect(() => parseManifest(Buffer.from([0x7b, 0xff, 0x7d]))).toThrow(expect.objectContaining({ kind: 'invalid' }));
    expect(() => parseManifest(Buffer.alloc(MANIFEST_MAX_BYTES + 1))).toThrow(
      expect.objectContaining({ kind: 'too-large' }),
    );
    expect(() =>
      parseManifest(bytes({ schemaVersion: 1 }), 'application/vnd.docker.distribution.manifest.v1+json'),
    ).toThrow(expect.objectContaining({ kind: 'unsupported' }));
  });

  it('is not bent by fields that mean something to JavaScript', () => {
    const text = JSON.stringify(MANIFEST).replace(
      '{',
      '{"__proto__":{"polluted":1},"constructor":{"prototype":{"x":1}},',
    );
    parseManifest(Buffer.from(text));
    expect(Reflect.get({}, 'polluted')).toBeUndefined();
  });
});

describe('parseImageConfig', () => {
  const config = { architecture: 'amd64', os: 'linux', rootfs: { type: 'layers', diff_ids: [digestOf('a')] } };

  it('reads what is there and fills in what is not', () => {
    expect(parseImageConfig(bytes(config))).toMatchObject({
      os: 'linux',
      diffIds: [digestOf('a')],
      config: {},
      history: [],
    });
  });

  it('takes the nulls that builders write', () => {
    const nulls = {
      ...config,
      config: { Env: null, Volumes: null, Labels: null, Cmd: null },
      history: null,
      created: null,
    };
    expect(parseImageConfig(bytes(nulls))).toMatchObject({ history: [], created: undefined });
  });

  it.each([
    ['no rootfs', { ...config, rootfs: undefined }],
    ['a diffID that is a path', { ...config, rootfs: { type: 'layers', diff_ids: ['sha256:../x'] } }],
    [
      'more layers than can be mounted',
      { ...config, rootfs: { type: 'layers', diff_ids: Array(501).fill(digestOf('a')) } },
    ],
    ['an environment that is no list', { ...config, config: { Env: 'A=B' } }],
  ])('refuses %s', (_what, value) => {
    expect(() => parseImageConfig(bytes(value))).toThrow(expect.objectContaining({ kind: 'invalid' }));
  });
});

describe('media types', () => {
  it.each([
    [MEDIA_TYPES.ociLayer, 'none'],
    [MEDIA_TYPES.ociLayerGzip, 'gzip'],
    [MEDIA_TYPES.ociLayerZstd, 'zstd'],
    ['application/vnd.oci.image.layer.nondistributable.v1.tar+gzip', 'gzip'],
    [MEDIA_TYPES.dockerLayer, 'none'],
    [MEDIA_TYPES.dockerLayerGzip, 'gzip'],
    [MEDIA_TYPES.dockerLayerZstd, 'zstd'],
    [MEDIA_TYPES.dockerForeignGzip, 'gzip'],
    [MEDIA_TYPES.ociConfig, undefined],
    [`${MEDIA_TYPES.ociLayer}+lzma`, undefined],
    [`x${MEDIA_TYPES.ociLayer}`, undefined],
  ])('%s is a layer compressed by %s', (mediaType, compression) => {
    expect(layerCompression(mediaType)).toBe(compression);
  });
});
