/**
 * Docker's rules of `rmi` and their messages, as one pure function over the references, children and users of images.
 * It decides what goes; store.ts makes it so in one transaction. Conflict texts are Docker's, because clients match them.
 */
import { type Digest, shortId } from '../../shared/digest.ts';
import { AppError } from '../../shared/errors.ts';
import type { ImageId, ImageUse, Removal, RemoveOptions } from './images.ts';

/** One name of an image: by tag, or by the digest that a repository knows it by. */
export interface NamedReference {
  /** Canonical: `host/repository:tag` or `host/repository@digest`. What the store is keyed by. */
  readonly name: string;
  /** As people see it. */
  readonly familiar: string;
  /** `host/repository`. */
  readonly repository: string;
  readonly byDigest: boolean;
}

/** What the decision needs to know of one image. */
export interface RemovalSubject {
  readonly id: ImageId;
  readonly parentId: ImageId | undefined;
  readonly references: readonly NamedReference[];
  readonly hasChildren: boolean;
  /** Running ones first. */
  readonly users: readonly ImageUse[];
}

export interface RemovalPlan {
  readonly removals: readonly Removal[];
  /** Canonical names to delete. */
  readonly untag: readonly string[];
  readonly images: readonly ImageId[];
}

export interface RemovalRequest extends RemoveOptions {
  /** As the user wrote it. */
  readonly written: string;
  /** The name it was found by; undefined = given by id. */
  readonly reference: NamedReference | undefined;
  readonly image: RemovalSubject;
  /** The chain of parents, nearest first; `hasChildren` of each leaves out the one whose removal is asked. */
  readonly parents: readonly RemovalSubject[];
}

/** @throws AppError 'conflict' in Docker's words */
export function planRemoval(request: RemovalRequest): RemovalPlan {
  const { image, reference } = request;
  const force = request.force === true;
  const untagged: NamedReference[] = [];
  let remaining = image.references;

  if (reference !== undefined) {
    const user = image.users[0];
    if (!force && user !== undefined && isSingleReference(remaining))
      throw new AppError(
        'conflict',
        `conflict: unable to delete ${request.written} (must be forced) - container ${shortId(user.containerId)} is using its referenced image ${shortId(image.id)}`,
      );
    untagged.push(reference);
    remaining = remaining.filter((other) => other.name !== reference.name);
    const stillTagged = remaining.some((other) => !other.byDigest && other.repository === reference.repository);
    if (!reference.byDigest && !stillTagged) {
      // The digests of a repository are only remembered for the sake of its tags.
      untagged.push(...remaining.filter((other) => other.repository === reference.repository));
      remaining = remaining.filter((other) => other.repository !== reference.repository);
    }
    // An image that a container uses stays, without a name, when its last name is forced away.
    const keep = remaining.length > 0 || image.hasChildren || image.users.some((use) => use.running || !force);
    if (keep) return plan(untagged, []);
    return plan(untagged, [image.id, ...danglingParents(request)]);
  }

  const conflict = idConflict(image, force);
  if (conflict !== undefined) throw conflict;
  untagged.push(...remaining);
  return plan(untagged, [image.id, ...danglingParents(request)]);
}

function plan(untagged: readonly NamedReference[], images: readonly ImageId[]): RemovalPlan {
  const removals: Removal[] = [
    ...untagged.map((reference) => ({ untagged: reference.familiar })),
    ...images.map((id: Digest) => ({ deleted: id })),
  ];
  return { removals, untag: untagged.map((reference) => reference.name), images };
}

function idConflict(image: RemovalSubject, force: boolean): AppError | undefined {
  const conflict = (canForce: boolean, why: string) =>
    new AppError(
      'conflict',
      `conflict: unable to delete ${shortId(image.id)} (${canForce ? 'must' : 'cannot'} be forced) - ${why}`,
    );
  if (image.hasChildren) return conflict(false, 'image has dependent child images');
  const running = image.users.find((use) => use.running);
  if (running !== undefined)
    return conflict(false, `image is being used by running container ${shortId(running.containerId)}`);
  if (force) return undefined;
  if (image.references.length > 0 && !isSingleReference(image.references))
    return conflict(true, 'image is referenced in multiple repositories');
  const stopped = image.users[0];
  if (stopped !== undefined)
    return conflict(true, `image is being used by stopped container ${shortId(stopped.containerId)}`);
  return undefined;
}

/** At most one tag, and digests of that tag's repository only: removing the image surprises nobody. */
function isSingleReference(references: readonly NamedReference[]): boolean {
  const tags = references.filter((reference) => !reference.byDigest);
  const repositories = new Set(references.map((reference) => reference.repository));
  return tags.length <= 1 && repositories.size <= 1;
}

/** Parents without a name, that nothing else was made from and nobody uses, go with their last child. */
function danglingParents(request: RemovalRequest): readonly ImageId[] {
  if (request.noPrune === true) return [];
  const gone: ImageId[] = [];
  for (const parent of request.parents) {
    if (parent.references.length > 0 || parent.users.length > 0 || parent.hasChildren) break;
    gone.push(parent.id);
  }
  return gone;
}
