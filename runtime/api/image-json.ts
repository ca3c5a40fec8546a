/** Images in Docker's JSON, with the fields that old API versions need. Pure. */
import type { HistoryStep, ImageDetail, ImageSummary, ManifestContent, Removal } from '../engine.ts';
import { goTime } from './context.ts';

/** API versions that changed what a field says. */
const VIRTUAL_SIZE_UNTIL = 44;
const CONTAINERS_SINCE = 51;

export interface SummaryForm {
  readonly apiMinor: number;
  /** Docker computes it only when asked; -1 says so. */
  readonly sharedSize: boolean;
}

export function imageSummaryJson(image: ImageSummary, form: SummaryForm): Record<string, unknown> {
  return {
    Containers: form.sharedSize || form.apiMinor >= CONTAINERS_SINCE ? image.containers : -1,
    Created: Math.floor(image.createdAt.getTime() / 1000),
    Id: image.id,
    Labels: image.labels,
    ParentId: image.parentId ?? '',
    Descriptor: image.manifest,
    RepoDigests: image.repoDigests,
    RepoTags: image.repoTags,
    SharedSize: form.sharedSize ? image.sharedBytes : -1,
    Size: image.sizeBytes,
    ...(form.apiMinor < VIRTUAL_SIZE_UNTIL && { VirtualSize: image.sizeBytes }),
    ...(image.content && { Manifests: [manifestJson(image, image.content)] }),
  };
}

/** Of an index only the manifest of this platform is kept, so there is one. */
function manifestJson({ manifest, sizeBytes }: ImageSummary, content: ManifestContent): Record<string, unknown> {
  return {
    ID: manifest.digest,
    Descriptor: { ...manifest, platform: content.platform },
    Available: true,
    Size: { Content: content.blobBytes, Total: sizeBytes },
    Kind: 'image',
    ImageData: {
      Platform: content.platform,
      Containers: content.containerIds,
      Size: { Unpacked: content.layerBytes },
    },
  };
}

export function imageDetailJson(image: ImageDetail, apiMinor: number): Record<string, unknown> {
  const { config } = image;
  return {
    Id: image.id,
    RepoTags: image.repoTags,
    RepoDigests: image.repoDigests,
    Parent: image.parentId ?? '',
    Comment: image.comment,
    Created: config.created ?? goTime(undefined),
    DockerVersion: '',
    Author: config.author ?? '',
    Config: imageConfigJson(image),
    Architecture: config.architecture,
    ...(config.variant !== undefined && { Variant: config.variant }),
    Os: config.os,
    Size: image.sizeBytes,
    ...(apiMinor < VIRTUAL_SIZE_UNTIL && { VirtualSize: image.sizeBytes }),
    GraphDriver: { Data: null, Name: 'overlayfs' },
    RootFS: { Type: 'layers', Layers: config.diffIds },
    Metadata: { LastTagTime: goTime(image.lastTaggedAt) },
    Descriptor: image.manifest,
  };
}

/** What a container of it runs; clients of every language expect these fields to exist. */
function imageConfigJson({ config, labels }: ImageDetail): Record<string, unknown> {
  const run = config.config;
  return {
    Hostname: '',
    Domainname: '',
    User: run.User ?? '',
    AttachStdin: false,
    AttachStdout: false,
    AttachStderr: false,
    ...(run.ExposedPorts && { ExposedPorts: run.ExposedPorts }),
    Tty: false,
    OpenStdin: false,
    StdinOnce: false,
    Env: run.Env ?? [],
    Cmd: run.Cmd ?? null,
    ...(run.Healthcheck && { Healthcheck: run.Healthcheck }),
    ...(run.ArgsEscaped && { ArgsEscaped: true }),
    Image: '',
    Volumes: run.Volumes ?? null,
    WorkingDir: run.WorkingDir ?? '',
    Entrypoint: run.Entrypoint ?? null,
    OnBuild: run.OnBuild ?? null,
    Labels: Object.keys(labels).length === 0 ? null : labels,
    ...(run.StopSignal && { StopSignal: run.StopSignal }),
    ...(run.StopTimeout != null && { StopTimeout: run.StopTimeout }),
    ...(run.Shell && { Shell: run.Shell }),
  };
}

export function historyJson(step: HistoryStep): Record<string, unknown> {
  return {
    Comment: step.comment,
    Created: step.createdAt === undefined ? 0 : Math.floor(step.createdAt.getTime() / 1000),
    CreatedBy: step.createdBy,
    Id: step.id ?? '<missing>',
    Size: step.sizeBytes,
    Tags: step.tags.length === 0 ? null : step.tags,
  };
}

export function removalJson(removal: Removal): Record<string, unknown> {
  return 'untagged' in removal ? { Untagged: removal.untagged } : { Deleted: removal.deleted };
}
