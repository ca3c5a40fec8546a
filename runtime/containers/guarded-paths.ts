/**
 * What of /proc and /sys a container does not see, or may only read, unless it asks for other lists or is privileged.
 * Docker's defaults. Pure.
 */

const MASKED_PATHS = [
  '/proc/acpi',
  '/proc/asound',
  '/proc/interrupts',
  '/proc/kcore',
  '/proc/keys',
  '/proc/latency_stats',
  '/proc/sched_debug',
  '/proc/scsi',
  '/proc/timer_list',
  '/proc/timer_stats',
  '/sys/devices/virtual/powercap',
  '/sys/firmware',
];

export const READONLY_PATHS: readonly string[] = [
  '/proc/bus',
  '/proc/fs',
  '/proc/irq',
  '/proc/sys',
  '/proc/sysrq-trigger',
];

/** `thermalThrottlePaths`: this host's, one per processor; they tell of other containers' load. */
export function maskedPaths(thermalThrottlePaths: readonly string[]): readonly string[] {
  return [...MASKED_PATHS, ...thermalThrottlePaths];
}
