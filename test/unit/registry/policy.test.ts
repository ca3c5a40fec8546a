import { describe, expect, it } from 'vitest';
import type { Action } from '../../../registry/access/access.ts';
import { compileGlob } from '../../../registry/access/globs.ts';
import { parsePolicy, type Subject } from '../../../registry/access/policy.ts';

const HASH = `$2b$10$${'a'.repeat(53)}`;
const POLICY = `
groups: { developers: [ann, bob], leads: [ann] }
robots:
  ci: { secretHash: ${HASH}, expires: 2030-01-01T00:00:00Z }
rules:
  - { to: [anyone], repositories: ["public/**"], may: [pull] }
  - { to: [authenticated], repositories: ["shared/*"], may: [pull] }
  - { to: ["group:developers", "robot:ci"], repositories: ["team/**"], may: [pull, push] }
  - { to: ["group:leads"], repositories: ["team/**"], may: [tag-overwrite, delete] }
  - { to: ["user:carl"], repositories: ["**"], may: [pull, push, tag-overwrite, delete] }
immutableTags: [{ repositories: ["team/**"], tags: ["v*", "release-*"] }]
quotas:
  - { repositories: ["team/big"], maxBytes: 1g }
  - { repositories: ["team/**"], maxBytes: 1000 }
`;

const named = (id: string): Subject => ({ id, isAnonymous: false });
const STRANGER: Subject = { id: 'anonymous', isAnonymous: true };

describe('globs', () => {
  it.each([
    ['**', 'a', true],
    ['**', 'a/b/c', true],
    ['*', 'a', true],
    ['*', 'a/b', false],
    ['team/*', 'team/a', true],
    ['team/*', 'team/a/b', false],
    ['team/**', 'team/a/b', true],
    ['team/**', 'team', false],
    ['team/**', 'teams/a', false],
    ['**/prod', 'a/b/prod', true],
    ['**/prod', 'prod', false],
    ['a.b', 'axb', false],
    ['v1.*', 'v1.2', true],
    ['v1.*', 'v12', false],
    ['a', 'a\nb', false],
  ])('%s on %j: %s', (glob, text, expected) => {
    expect(compileGlob(glob)(text)).toBe(expected);
  });

  it.each(['', 'a b', 'a(b', '[a]', '$', '*a*b*c*d'])('refuses %j', (glob) => {
    expect(() => compileGlob(glob)).toThrow('cannot use pattern');
  });
});

describe('policy', () => {
  const policy = parsePolicy(POLICY);
  const on = (repository: string, kind: 'pull' | 'push' | 'delete'): Action => ({ kind, repository });
  const tag = (kind: 'tag-create' | 'tag-overwrite' | 'tag-delete', name: string): Action => ({
    kind,
    repository: 'team/app',
    tag: name,
  });

  it.each<[string, Subject, Action, boolean]>([
    ['a stranger pulls what is public', STRANGER, on('public/a', 'pull'), true],
    ['a stranger pushes nothing', STRANGER, on('public/a', 'push'), false],
    ['a stranger pulls nothing else', STRANGER, on('shared/a', 'pull'), false],
    ['whoever has a name pulls what is shared', named('dora'), on('shared/a', 'pull'), true],
    ['a name gives no more than the rules', named('dora'), on('team/app', 'pull'), false],
    ['a member pushes', named('bob'), on('team/app', 'push'), true],
    ['a member does not delete', named('bob'), on('team/app', 'delete'), false],
    ['a member creates tags', named('bob'), tag('tag-create', 'latest'), true],
    ['who may create may not overwrite (CVE-2026-31801)', named('bob'), tag('tag-overwrite', 'latest'), false],
    ['two groups add up', named('ann'), tag('tag-overwrite', 'latest'), true],
    ['an immutable tag can be created', named('ann'), tag('tag-create', 'v1'), true],
    ['nobody overwrites it (CVE-2026-31801)', named('carl'), tag('tag-overwrite', 'v1'), false],
    ['nobody deletes it (PROJQUAY-10504)', named('carl'), tag('tag-delete', 'release-1'), false],
    ['other tags can be deleted', named('ann'), tag('tag-delete', 'latest'), true],
    ['a robot has its rights', named('robot+ci'), on('team/app', 'push'), true],
    ['a user with a name like a robot has not', named('ci'), on('team/app', 'push'), false],
    ['a user called like a group has not its rights', named('group:developers'), on('team/app', 'push'), false],
    ['the probe is for whoever may pull something', STRANGER, { kind: 'probe' }, true],
  ])('%s', (_what, subject, action, expected) => {
    expect(policy.allows(subject, action)).toBe(expected);
  });

  it('gives no rights without rules', () => {
    const empty = parsePolicy('');
    expect(empty.allows(named('ann'), on('a', 'pull'))).toBe(false);
    expect(empty.allows(STRANGER, { kind: 'catalog' })).toBe(false);
  });

  it('takes the first quota that matches', () => {
    expect(policy.quotaBytes('team/big')).toBe(2 ** 30);
    expect(policy.quotaBytes('team/app')).toBe(1000);
    expect(policy.quotaBytes('public/a')).toBeUndefined();
  });

  it.each([
    ['rules: [{ to: [everyone], repositories: ["**"], may: [pull] }]', 'rules.0.to.0'],
    ['rules: [{ to: [anyone], repositories: ["**"], may: [fly] }]', 'rules.0.may.0'],
    ['rules: [{ to: ["group:nobody"], repositories: ["**"], may: [pull] }]', 'group:nobody, which is not in it'],
    ['robots: { ci: { secretHash: plain } }', 'want a bcrypt hash'],
    ['rights: []', 'document'],
    ['rules: [', 'cannot read the policy'],
    ['quotas: [{ repositories: ["**"], maxBytes: many }]', 'many'],
  ])('refuses %s', (text, message) => {
    expect(() => parsePolicy(text)).toThrow(message);
  });
});
