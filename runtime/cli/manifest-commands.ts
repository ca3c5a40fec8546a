/** What `manifest create`, `annotate`, `inspect`, `push` and `rm` do: one name for the images of several platforms. */
import { join } from 'node:path';
import { AppError } from '../../shared/errors.ts';
import type { Descriptor, Platform } from '../../shared/oci.ts';
import { canonicalReference, familiarReference, parseReference, type Reference } from '../../shared/reference.ts';
import { createManifestLists, indexOf, type ManifestLists, type Member, noSuchList } from './manifest-lists.ts';
import { connect, copyInto, describe, find, membersOf, type RegistryFlags } from './manifest-registry.ts';
import { print, say } from './output.ts';
import { forEachName, type Session } from './session.ts';

export interface CreateFlags extends RegistryFlags {
  readonly amend?: boolean;
}

export async function create(
  session: Session,
  name: string,
  images: readonly string[],
  flags: CreateFlags,
): Promise<void> {
  const list = parseListName(name);
  const lists = listsOf(session);
  if (flags.amend !== true && (await lists.members(list)) !== undefined) throw existing(list);
  // All are looked up before anything is written: half a list would be pushed by the next step of a script.
  const found: Member[] = [];
  for (const image of images) {
    const reference = parseReference(image);
    using client = connect(session, reference.host, flags);
    found.push(...(await membersOf(client, await find(client, reference))));
  }
  if (!(await lists.create(list)) && flags.amend !== true) throw existing(list);
  for (const member of found) await lists.put(list, member);
  print(`Created manifest list ${canonicalReference(list)}`);
}

function existing(list: Reference): AppError {
  return new AppError(
    'already-exists',
    `refusing to amend an existing manifest list with no --amend flag: ${familiarReference(list)}`,
  );
}

export interface AnnotateFlags {
  readonly arch?: string;
  readonly os?: string;
  readonly variant?: string;
  readonly osVersion?: string;
  readonly osFeatures?: readonly string[];
}

export async function annotate(session: Session, name: string, image: string, flags: AnnotateFlags): Promise<void> {
  const lists = listsOf(session);
  const list = parseListName(name);
  const member = await memberOf(lists, list, image);
  const { os = '', architecture = '', ...rest } = member.descriptor.platform ?? {};
  const features = flags.osFeatures?.flatMap((text) => text.split(','));
  const platform: Platform = {
    ...rest,
    os: flags.os ?? os,
    architecture: flags.arch ?? architecture,
    ...(flags.variant !== undefined && { variant: flags.variant }),
    ...(flags.osVersion !== undefined && { 'os.version': flags.osVersion }),
    ...(features !== undefined && { 'os.features': features }),
  };
  await lists.put(list, { ...member, descriptor: { ...member.descriptor, platform } });
}

export interface InspectFlags extends RegistryFlags {
  readonly verbose?: boolean;
}

/** With two names an image of a list that is kept here; with one such a list, else what the registry has. */
export async function inspect(session: Session, name: string, image: string | undefined, flags: InspectFlags) {
  const lists = listsOf(session);
  if (image !== undefined) {
    const member = await memberOf(lists, parseListName(name), image);
    return print(shown({ Ref: member.source, Descriptor: member.descriptor }));
  }
  const reference = parseReference(name);
  const members = await lists.members(reference);
  if (members !== undefined) {
    if (flags.verbose !== true) return print(indexOf(members).bytes.toString('utf8'));
    return print(shown(members.map(({ source, descriptor }) => ({ Ref: source, Descriptor: descriptor }))));
  }
  using client = connect(session, reference.host, flags);
  const found = await find(client, reference);
  if (flags.verbose !== true) return print(shown(JSON.parse(found.bytes.toString('utf8'))));
  const one = async (ref: Reference, descriptor?: Descriptor) => {
    const image = await find(client, ref);
    return {
      Ref: canonicalReference(ref),
      Descriptor: descriptor ?? (await describe(client, image)),
      Manifest: JSON.parse(image.bytes.toString('utf8')),
    };
  };
  if (found.document.kind === 'manifest') return print(shown(await one(reference)));
  const { manifests } = found.document;
  const all = await Promise.all(
    manifests.map((descriptor) => one({ ...reference, tag: undefined, digest: descriptor.digest }, descriptor)),
  );
  print(shown(all));
}

export interface PushFlags extends RegistryFlags {
  readonly purge?: boolean;
}

/** Prints the index's digest. */
export async function push(session: Session, name: string, flags: PushFlags): Promise<void> {
  const lists = listsOf(session);
  const list = parseListName(name);
  const members = await lists.members(list);
  if (members === undefined) throw noSuchList(list);
  const { bytes, mediaType } = indexOf(members);
  using client = connect(session, list.host, flags);
  const target = { client, repository: list.repository };
  for (const member of members) {
    const { host, repository } = parseReference(member.source);
    if (host === list.host && repository === list.repository) continue;
    using source = connect(session, host, flags);
    await copyInto(target, { client: source, member });
    say(`copied ${member.source}`);
  }
  const { digest } = await client.pushManifest(list.repository, list.tag ?? '', { bytes, mediaType });
  if (flags.purge === true) await lists.remove(list);
  print(digest);
}

export async function rm(session: Session, names: readonly string[]): Promise<void> {
  const lists = listsOf(session);
  await forEachName(session, names, async (name) => {
    const list = parseListName(name);
    if (!(await lists.remove(list))) throw noSuchList(list);
  });
}

function listsOf(session: Session): ManifestLists {
  return createManifestLists(join(session.configDirectory, 'berth-manifests'));
}

function parseListName(name: string): Reference {
  const list = parseReference(name);
  if (list.digest === undefined) return list;
  throw new AppError('invalid', `cannot use ${JSON.stringify(name)} as a manifest list: it needs a tag, not a digest`);
}

/** By the name with which it was added, or by its digest. */
async function memberOf(lists: ManifestLists, list: Reference, image: string): Promise<Member> {
  const members = await lists.members(list);
  if (members === undefined) throw noSuchList(list);
  const reference = parseReference(image);
  const member =
    members.find(({ source }) => source === canonicalReference(reference)) ??
    members.find(({ descriptor }) => descriptor.digest === reference.digest);
  if (member !== undefined) return member;
  throw new AppError('not-found', `manifest for image ${image} does not exist in ${familiarReference(list)}`);
}

function shown(value: unknown): string {
  return JSON.stringify(value, null, 2);
}
