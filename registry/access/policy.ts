/**
 * The policy file: groups, robot accounts, rules, immutable tags, quotas, metrics. A rule gives rights and nothing takes them
 * away; what no rule gives is refused. Immutable tags are stronger than any right. Pure: text in, answers out.
 *
 *   groups: { developers: [ann, bob] }
 *   robots: { ci: { secretHash: $2b$…, expires: 2030-01-01T00:00:00Z } }        # logs in as robot+ci
 *   rules:
 *     - { to: [anyone], repositories: [public/**], may: [pull] }
 *     - { to: [group:developers, robot:ci], repositories: [team/**], may: [pull, push] }
 *   immutableTags: [{ repositories: [team/**], tags: [v*] }]
 *   quotas: [{ repositories: [team/**], maxBytes: 10g }]
 *   metrics: [user:prometheus]
 */
import { parse as parseYaml } from 'yaml';
import { z } from 'zod';
import { AppError, messageOf } from '../../shared/errors.ts';
import { parseBytes } from '../../shared/units.ts';
import type { Action } from './access.ts';
import { compileGlobs, type Matcher } from './globs.ts';
import { isPasswordHash } from './passwords.ts';

/** How robot accounts are told from users, whose names never begin so. */
export const ROBOT_PREFIX = 'robot+';

/** `push` uploads and creates tags; moving a tag that exists is `tag-overwrite`; `delete` removes tags, too. */
const RIGHTS = ['pull', 'push', 'tag-overwrite', 'delete'] as const;
type Right = (typeof RIGHTS)[number];

export interface Subject {
  readonly id: string;
  readonly isAnonymous: boolean;
}

export interface Robot {
  readonly secretHash: string;
  readonly expiresAt: Date | undefined;
}

export interface Policy {
  allows(subject: Subject, action: Action): boolean;
  /** Whether nobody at all may move or remove this tag. */
  isImmutable(repository: string, tag: string): boolean;
  /** Most bytes of blobs and manifests; the first quota that matches counts. undefined = no quota. */
  quotaBytes(repository: string): number | undefined;
  robot(name: string): Robot | undefined;
  /** Whether there is anything that somebody without a name may pull. */
  readonly servesAnonymous: boolean;
}

const accountName = z.string().regex(/^[A-Za-z0-9._@-]{1,128}$/, 'want letters, digits and . _ @ -');
const globs = z.array(z.string()).min(1);
const principal = z
  .string()
  .regex(
    /^(?:anyone|authenticated|(?:user|group|robot):[A-Za-z0-9._@-]{1,128})$/,
    'want anyone, authenticated, user:NAME, group:NAME or robot:NAME',
  );

const policySchema = z.strictObject({
  groups: z.record(accountName, z.array(accountName)).default({}),
  robots: z
    .record(
      accountName,
      z.strictObject({
        secretHash: z.string().refine(isPasswordHash, 'want a bcrypt hash, as berth-registry hash-password prints'),
        expires: z.coerce.date().optional(),
      }),
    )
    .default({}),
  metrics: z.array(principal).default(['authenticated']),
  rules: z
    .array(z.strictObject({ to: z.array(principal).min(1), repositories: globs, may: z.array(z.enum(RIGHTS)).min(1) }))
    .default([]),
  immutableTags: z.array(z.strictObject({ repositories: globs, tags: globs })).default([]),
  quotas: z
    .array(z.strictObject({ repositories: globs, maxBytes: z.union([z.int().positive(), z.string()]) }))
    .default([]),
});
type PolicyDocument = z.infer<typeof policySchema>;

/** What holds when there are users and no policy file. */
export const POLICY_OF_USERS =
  'rules: [{ to: [authenticated], repositories: ["**"], may: [pull, push, tag-overwrite, delete] }]';

/** @throws AppError 'invalid' naming the place in the document */
export function parsePolicy(text: string): Policy {
  return createPolicy(readDocument(text));
}

function readDocument(text: string): PolicyDocument {
  let document: unknown;
  try {
    document = parseYaml(text, { maxAliasCount: 100 });
  } catch (cause) {
    throw new AppError('invalid', `cannot read the policy: ${messageOf(cause)}`, { cause });
  }
  const parsed = policySchema.safeParse(document ?? {});
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw new AppError('invalid', `cannot use the policy: ${issue?.path.join('.') || 'document'}: ${issue?.message}`);
}

interface Rule {
  readonly to: ReadonlySet<string>;
  readonly matches: Matcher;
  readonly may: ReadonlySet<Right>;
}

function createPolicy(document: PolicyDocument): Policy {
  const rules = document.rules.map(({ to, repositories, may }): Rule => {
    for (const name of to) assertKnown(document, name);
    return { to: new Set(to), matches: compileGlobs(repositories), may: new Set(may) };
  });
  const immutable = document.immutableTags.map(({ repositories, tags }) => ({
    inRepository: compileGlobs(repositories),
    isTag: compileGlobs(tags),
  }));
  const quotas = document.quotas.map(({ repositories, maxBytes }) => ({
    matches: compileGlobs(repositories),
    maxBytes: typeof maxBytes === 'number' ? maxBytes : parseBytes(maxBytes),
  }));
  const principals = principalsOf(document);
  const robots = new Map(Object.entries(document.robots));

  const has = (subject: Subject, right: Right, repository: string): boolean => {
    const names = principals(subject);
    return rules.some(
      ({ to, may, matches }) => may.has(right) && names.some((name) => to.has(name)) && matches(repository),
    );
  };
  const isImmutable = (repository: string, tag: string) =>
    immutable.some(({ inRepository, isTag }) => inRepository(repository) && isTag(tag));
  const servesAnonymous = rules.some(({ to, may }) => to.has('anyone') && may.has('pull'));

  return {
    isImmutable,
    servesAnonymous,
    quotaBytes: (repository) => quotas.find(({ matches }) => matches(repository))?.maxBytes,
    robot(name) {
      const found = robots.get(name);
      return found === undefined ? undefined : { secretHash: found.secretHash, expiresAt: found.expires };
    },
    allows(subject, action) {
      switch (action.kind) {
        case 'probe':
        case 'catalog':
          return !subject.isAnonymous || servesAnonymous;
        case 'metrics':
          return principals(subject).some((name) => document.metrics.includes(name));
        case 'list':
          return has(subject, 'pull', action.repository);
        case 'pull':
        case 'push':
        case 'delete':
          return has(subject, action.kind, action.repository);
        case 'tag-create':
          return has(subject, 'push', action.repository);
        case 'tag-overwrite':
          return !isImmutable(action.repository, action.tag) && has(subject, 'tag-overwrite', action.repository);
        case 'tag-delete':
          return !isImmutable(action.repository, action.tag) && has(subject, 'delete', action.repository);
        default:
          return action satisfies never;
      }
    },
  };
}

/** A misspelt name would give a right to nobody, or worse, to whoever takes that name later. Users are elsewhere. */
function assertKnown({ groups, robots }: PolicyDocument, principal: string): void {
  const [kind, name = ''] = principal.split(':');
  if ((kind === 'group' && !Object.hasOwn(groups, name)) || (kind === 'robot' && !Object.hasOwn(robots, name)))
    throw new AppError('invalid', `cannot use the policy: a rule names ${principal}, which is not in it`);
}

/** Names under which rules may mean a subject. */
function principalsOf({ groups }: PolicyDocument): (subject: Subject) => readonly string[] {
  const groupsOf = new Map<string, string[]>();
  for (const [group, members] of Object.entries(groups))
    for (const member of members) groupsOf.set(member, [...(groupsOf.get(member) ?? []), `group:${group}`]);
  return ({ id, isAnonymous }) => {
    if (isAnonymous) return ['anyone'];
    if (id.startsWith(ROBOT_PREFIX)) return ['anyone', 'authenticated', `robot:${id.slice(ROBOT_PREFIX.length)}`];
    return ['anyone', 'authenticated', `user:${id}`, ...(groupsOf.get(id) ?? [])];
  };
}
