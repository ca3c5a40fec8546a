import { describe, expect, it } from 'vitest';
import { runtimeFailure } from '../../runtime/kernel/oci-runtime.ts';

describe("the runtime's words", () => {
  it.each([
    ['crun, no container', 'error opening file `/run/x/nope/status`: No such file or directory', 'not-found', 125],
    ['crun, deleted before', "cannot open directory '/run/x/k': No such file or directory", 'not-found', 125],
    ['crun 1.21, deleted before', 'cannot open directory `/run/x/k`: No such file or directory', 'not-found', 125],
    ['runc, no container', '{"level":"error","msg":"container does not exist","time":"t"}', 'not-found', 125],
    ['crun, no command', 'executable file `/nope` not found in $PATH: No such file or directory', 'invalid', 127],
    [
      'runc, no such path',
      'time="t" level=error msg="runc run failed: unable to start container process: exec: \\"/nope\\": stat /nope: no such file or directory"',
      'invalid',
      127,
    ],
    [
      'runc, no such name',
      '{"msg":"unable to start container process: exec: \\"nope\\": executable file not found in $PATH","level":"error"}',
      'invalid',
      127,
    ],
    ['crun, not executable', 'open executable: Permission denied', 'invalid', 126],
    ['crun, a directory', 'open executable: Operation not permitted', 'invalid', 126],
    [
      'crun 1.21, not executable',
      'the path `/etc/passwd` exists but it is not executable: Operation not permitted',
      'invalid',
      126,
    ],
    ['crun 1.21, a directory', 'the path `/etc` is not a regular file: Operation not permitted', 'invalid', 126],
    ['crun 1.21, below a file', 'cannot open `/etc/passwd/x`: Not a directory', 'invalid', 126],
    ['crun 1.21, no such directory', 'chdir to `/etc/passwd`: Not a directory', 'invalid', 125],
    ['runc, not executable', 'unable to start container process: exec: "/etc": permission denied', 'invalid', 126],
    ['crun, started before', 'cannot open `/run/x/k/exec.fifo`: No such file or directory', 'conflict', 125],
    ['crun, still running', 'the container `k` is not in `created` or `stopped` state', 'conflict', 125],
    ['runc, not running', '{"level":"error","msg":"container not running"}', 'conflict', 125],
    ['crun, paused', 'the container `k` is paused', 'conflict', 125],
    ['crun, made before', 'container `k` already exists', 'already-exists', 125],
    ['something else', 'disk on fire', 'unavailable', 125],
    ['nothing at all', '', 'unavailable', 125],
  ])('%s', (_name, stderr, kind, exitCode) => {
    const failure = runtimeFailure('start', 'k', stderr);
    expect(failure.kind).toBe(kind);
    expect(failure.detail).toMatchObject({ exitCode });
  });

  it('keeps the last line of JSON logs and plain ones', () => {
    const stderr = '{"msg":"first","level":"warning"}\nplain last\n';
    expect(runtimeFailure('start', 'k', stderr).message).toBe('cannot start container "k": plain last');
  });
});
