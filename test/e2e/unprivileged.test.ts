/** The engine where it may not mount or run anything: in containers, as an ordinary user and as their root. */
import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { buildImage, buildLayer, busyboxImage } from '../fixtures/images.ts';
import { CI_USER, openCiContainers } from './ci-place.ts';
import { openRig, type Rig } from './rig.ts';

const undo = new AsyncDisposableStack();
let rig: Rig;
let busybox: string;
let large: string;

beforeAll(async () => {
  rig = undo.use(await openRig());
  busybox = await rig.push(await busyboxImage(), 'busybox:1');
  const bulk = buildLayer([{ name: 'bulk', content: randomBytes(32 << 20) }]);
  large = await rig.push(buildImage({ layers: [bulk] }), 'large:1');
  const ci = await openCiContainers(rig);
  for (const [name, user] of [
    ['ordinary', CI_USER],
    ['confined', 0],
  ] as const)
    await rig.expectBerth(['run', '-d', '--name', name, ...(await ci.runArgs(user)), ci.image, 'sleep', 'infinity']);
}, 120_000);
afterAll(async () => {
  await rig.berth(['rm', '-f', 'ordinary', 'confined']);
  await undo.disposeAsync();
});

const sh = (container: string, script: string) => rig.berth(['exec', container, 'sh', '-c', script]);
async function shOk(container: string, script: string): Promise<string> {
  const outcome = await sh(container, `set -e\n${script}`);
  expect(outcome, script).toMatchObject({ code: 0 });
  return outcome.stdout;
}

describe.each([
  ['ordinary', /ordinary user, without CAP_SYS_ADMIN/, '/home/ci', `/tmp/berth-${CI_USER}`],
  ['confined', /root without CAP_SYS_ADMIN, as in a container/, '/root', '/tmp/berth-0'],
] as const)('an engine of the %s user of a container', (who, privilege, home, runDir) => {
  it('comes up by itself in directories of its own, and says what it cannot do', async () => {
    const { code, stdout, stderr } = await sh(who, 'berth info --format json');
    expect({ code, stderr }).toMatchObject({ code: 0, stderr: expect.stringContaining('no engine runs') });
    expect(JSON.parse(stdout)).toMatchObject({
      DockerRootDir: `${home}/.local/share/berth`,
      Containers: 0,
      Warnings: [expect.stringMatching(privilege)],
    });
    expect(
      await shOk(who, `stat -c '%a %U' ${home}/.local/share/berth ${runDir} ${runDir}/berth.sock | cut -d' ' -f1`),
    ).toBe('700\n700\n600\n');
  });

  it('publishes an image, and refuses to run one before it is looked for', async () => {
    const target = `${rig.registry.address}/${who}/copy:1`;
    await shOk(who, `berth pull -q ${busybox}; berth tag ${busybox} ${target}; berth push -q ${target}`);
    expect(await sh(who, `berth run --rm ${rig.registry.address}/absent:1`)).toMatchObject({
      code: 125,
      stderr: expect.stringMatching(privilege),
    });
  });
});

it('pulls, tags, pushes, saves, loads, imports, shows and removes images', async () => {
  const target = `${rig.registry.address}/ci/copy:1`;
  const out = await shOk(
    'ordinary',
    `berth rmi ${busybox} ${rig.registry.address}/ordinary/copy:1 >&2
     berth pull ${busybox} | cat
     berth tag ${busybox} ${target}
     berth push ${target} | cat
     berth history -q ${target} >&2
     berth save ${target} -o image.tar
     berth rmi ${busybox} ${target} >&2
     berth load -i image.tar
     echo content >file && tar cf - file | berth import - imported:1 >&2
     berth images --format '{{.Repository}}:{{.Tag}}'
     berth ps -aq; berth network ls -q >&2; berth volume ls -q; berth system df >&2`,
  );
  expect(out).toContain('Status: Downloaded newer image');
  // Plain lines where nobody looks at a terminal.
  expect(out).not.toContain('\x1b');
  expect(out).not.toContain('\r');
  expect(out).toMatch(/1: digest: sha256:[0-9a-f]{64} size: \d+\n/);
  expect(out).toContain(`Loaded image: ${target}\n`);
  expect(out.split('\n').slice(-3).sort()).toEqual(['', `${target}`, 'imported:1'].sort());
  // Elsewhere it runs.
  expect(await rig.expectBerth(['run', '--rm', target, 'echo', 'published'])).toContain('published\n');
});

it('refuses everything that needs a container', async () => {
  const refused = { stderr: expect.stringContaining('start berthd as root of the host') };
  expect(await sh('ordinary', 'berth create imported:1 x')).toMatchObject({ code: 125, ...refused });
  expect(await sh('ordinary', 'berth network create n')).toMatchObject({ code: 1, ...refused });
  expect(await sh('ordinary', 'berth volume create v')).toMatchObject({ code: 1, ...refused });
  expect(await sh('ordinary', 'berth exec x true')).toMatchObject({
    code: 1,
    stderr: expect.stringContaining('No such container'),
  });
});

it('is legal after a kill in the middle of a pull', async () => {
  const script = `berth pull ${large} 2>&1 | {
      read -r line; read -r line
      for process in /proc/[0-9]*; do
        if tr '\\0' ' ' <$process/cmdline | grep -q 'runtime/[d]aemon.ts'; then kill -9 \${process#/proc/}; fi
      done
      cat
    }`;
  expect((await sh('ordinary', script)).stdout).toMatch(/error/);
  const out = await shOk(
    'ordinary',
    `berth pull -q ${large} 2>/dev/null
     berth save ${large} | wc -c
     berth system prune -af >&2
     berth system df --format '{{.Type}} {{.Size}}' | head -1`,
  );
  expect(Number(out.split('\n')[1])).toBeGreaterThan(32 << 20);
  expect(out).toContain('Images 0B\n');
});

it('stays off a directory below /tmp that somebody else has made', async () => {
  const script = `mkdir /tmp/berth-4321 && chmod 700 /tmp/berth-4321`;
  await shOk('ordinary', script);
  const squatted = await rig.berth(['exec', '--user', '4321', 'ordinary', 'berth', 'images']);
  expect(squatted).toMatchObject({ code: 1, stderr: expect.stringContaining('others may have made or changed it') });
});
