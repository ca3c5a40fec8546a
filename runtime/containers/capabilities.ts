/** Which capabilities a process gets: Docker's default fourteen, tweaked by --cap-add and --cap-drop. Pure. */
import { AppError } from '../../shared/errors.ts';

export const DEFAULT_CAPABILITIES: readonly string[] = [
  'CAP_CHOWN',
  'CAP_DAC_OVERRIDE',
  'CAP_FSETID',
  'CAP_FOWNER',
  'CAP_MKNOD',
  'CAP_NET_RAW',
  'CAP_SETGID',
  'CAP_SETUID',
  'CAP_SETFCAP',
  'CAP_SETPCAP',
  'CAP_NET_BIND_SERVICE',
  'CAP_SYS_CHROOT',
  'CAP_KILL',
  'CAP_AUDIT_WRITE',
];

/** In the kernel's order, include/uapi/linux/capability.h; the index is its number. */
export const ALL_CAPABILITIES: readonly string[] = `
  CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
  NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
  SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
  MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
`
  .split(/\s+/)
  .filter(Boolean)
  .map((name) => `CAP_${name}`);

export interface CapabilityRequest {
  readonly add: readonly string[];
  readonly drop: readonly string[];
  readonly privileged: boolean;
  /** What the engine itself may give away: CapBnd of proc_pid_status(5), hexadecimal. */
  readonly hostMask: string;
}

/** @throws AppError 'invalid' for a name that does not exist, 'unsupported' for one that this host cannot give */
export function capabilitiesOf({ add, drop, privileged, hostMask }: CapabilityRequest): readonly string[] {
  const mask = BigInt(`0x${hostMask}`);
  const available = ALL_CAPABILITIES.filter((_name, bit) => ((mask >> BigInt(bit)) & 1n) === 1n);
  if (privileged) return available;
  const added = normalize(add);
  const dropped = normalize(drop);
  if (added.includes('ALL')) return available.filter((name) => !dropped.includes(name));
  const lacking = added.find((name) => !available.includes(name));
  if (lacking !== undefined)
    throw new AppError('unsupported', `cannot add capability ${lacking}: this host does not have it`);
  const kept = dropped.includes('ALL') ? [] : DEFAULT_CAPABILITIES.filter((name) => !dropped.includes(name));
  const base = kept.filter((name) => available.includes(name));
  return [...base, ...added.filter((name) => !base.includes(name))];
}

function normalize(names: readonly string[]): readonly string[] {
  const normal = names.map((name) => {
    const upper = name.toUpperCase();
    if (upper === 'ALL' || upper === 'CAP_ALL') return 'ALL';
    const full = upper.startsWith('CAP_') ? upper : `CAP_${upper}`;
    if (!ALL_CAPABILITIES.includes(full)) throw new AppError('invalid', `unknown capability: ${JSON.stringify(full)}`);
    return full;
  });
  return [...new Set(normal)];
}
