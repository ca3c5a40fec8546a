import { describe, expect, it } from 'vitest';
import {
  type NamedReference,
  planRemoval,
  type RemovalRequest,
  type RemovalSubject,
} from '../../runtime/images/removal.ts';
import { digestOf } from '../../shared/digest.ts';
import { isKind, messageOf } from '../../shared/errors.ts';

const ID = digestOf('image');
const PARENT = digestOf('parent');
const SHORT = ID.slice(7, 19);
const CONTAINER = 'c0ffee'.repeat(10);

/** `a:1`, `a@d`: names of repository `host/a`. */
function named(text: string): NamedReference {
  const byDigest = text.includes('@');
  return { name: `host/${text}`, familiar: text, repository: `host/${text.split(/[:@]/)[0]}`, byDigest };
}

interface Given {
  readonly names?: readonly string[];
  readonly children?: boolean;
  readonly users?: 'running' | 'stopped';
}

function subject({ names = [], children = false, users }: Given, id = ID): RemovalSubject {
  return {
    id,
    parentId: undefined,
    references: names.map(named),
    hasChildren: children,
    users: users === undefined ? [] : [{ containerId: CONTAINER, running: users === 'running' }],
  };
}

function request(written: string, given: Given, more: Partial<RemovalRequest> = {}): RemovalRequest {
  const image = subject(given);
  const reference = image.references.find((name) => name.familiar === written);
  return { written, reference, image, parents: [], ...more };
}

/** Untagged names, then `-` for each image that goes; or the refusal. */
function outcome(input: RemovalRequest): string {
  try {
    return planRemoval(input)
      .removals.map((removal) => ('untagged' in removal ? removal.untagged : '-'))
      .join(' ');
  } catch (error) {
    if (!isKind(error, 'conflict')) throw error;
    return messageOf(error);
  }
}

describe('rmi by name', () => {
  const cases: readonly [string, Given, boolean, string][] = [
    ['a:1', { names: ['a:1'] }, false, 'a:1 -'],
    ['a:1', { names: ['a:1', 'a@d'] }, false, 'a:1 a@d -'],
    ['a:1', { names: ['a:1', 'a:2', 'a@d'] }, false, 'a:1'],
    ['a:1', { names: ['a:1', 'a@d', 'b:1'] }, false, 'a:1 a@d'],
    ['a@d', { names: ['a:1', 'a@d'] }, false, 'a@d'],
    ['a@d', { names: ['a@d'] }, false, 'a@d -'],
    [
      'a:1',
      { names: ['a:1', 'a@d'], users: 'stopped' },
      false,
      `conflict: unable to delete a:1 (must be forced) - container ${CONTAINER.slice(0, 12)} is using its referenced image ${SHORT}`,
    ],
    ['a:1', { names: ['a:1', 'b:1'], users: 'running' }, false, 'a:1'],
    ['a:1', { names: ['a:1'], users: 'stopped' }, true, 'a:1 -'],
    ['a:1', { names: ['a:1'], users: 'running' }, true, 'a:1'],
    ['a:1', { names: ['a:1'], children: true }, false, 'a:1'],
  ];
  it.each(cases)('%s of %j, forced %s: %s', (written, given, force, expected) => {
    expect(outcome(request(written, given, { force }))).toBe(expected);
  });
});

describe('rmi by id', () => {
  const refusal = (how: string, why: string) => `conflict: unable to delete ${SHORT} (${how} be forced) - ${why}`;
  const container = CONTAINER.slice(0, 12);
  const cases: readonly [Given, boolean, string][] = [
    [{ names: [] }, false, '-'],
    [{ names: ['a:1', 'a@d'] }, false, 'a:1 a@d -'],
    [{ names: ['a:1', 'a:2'] }, false, refusal('must', 'image is referenced in multiple repositories')],
    [{ names: ['a:1', 'b:1'] }, false, refusal('must', 'image is referenced in multiple repositories')],
    [{ names: ['a:1', 'b:1'] }, true, 'a:1 b:1 -'],
    [{ users: 'stopped' }, false, refusal('must', `image is being used by stopped container ${container}`)],
    [{ users: 'stopped' }, true, '-'],
    [{ users: 'running' }, true, refusal('cannot', `image is being used by running container ${container}`)],
    [{ children: true }, true, refusal('cannot', 'image has dependent child images')],
  ];
  it.each(cases)('%j, forced %s: %s', (given, force, expected) => {
    expect(outcome(request(SHORT, given, { force }))).toBe(expected);
  });

  it('takes untagged parents along, up to the first that somebody needs', () => {
    const parents = [subject({}, PARENT), subject({ names: ['base:1'] }, digestOf('grandparent'))];
    expect(planRemoval(request(SHORT, {}, { parents })).images).toEqual([ID, PARENT]);
    expect(planRemoval(request(SHORT, {}, { parents, noPrune: true })).images).toEqual([ID]);
  });
});
