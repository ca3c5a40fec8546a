/**
 * The config of an image that a build makes: what containers of it run, and its history. Pure.
 * https://github.com/opencontainers/image-spec/blob/v1.1.1/config.md
 */

import type { ImageHistory, ImageRunConfig, Platform } from '../../shared/oci.ts';
import { INLINE_FIELD } from './remote-cache.ts';

/** What containers have whose image says nothing: docker's default. */
const DEFAULT_PATH = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/** The config that a stage begins with. */
export function scratchConfig(): ImageRunConfig {
  return { Env: [DEFAULT_PATH], WorkingDir: '/' };
}

/** A base's config as a stage begins with it: programs are found, and triggers have been taken out. */
export function baseConfig({ OnBuild: _, ...config }: ImageRunConfig): ImageRunConfig {
  const env = config.Env ?? [];
  return env.some((entry) => entry.startsWith('PATH=')) ? config : { ...config, Env: [DEFAULT_PATH, ...env] };
}

export interface ImageFacts {
  readonly platform: Platform;
  readonly config: ImageRunConfig;
  readonly history: readonly ImageHistory[];
  readonly author: string | undefined;
  readonly createdAt: Date | undefined;
  readonly labels: Readonly<Record<string, string>>;
  /** Written into the image for later builds. */
  readonly inlineCache: unknown;
}

/** Everything but `rootfs`, in the order that Docker writes it. */
export function imageConfigOf(facts: ImageFacts): Readonly<Record<string, unknown>> {
  const { platform, config, labels, history } = facts;
  const { architecture, os, variant } = platform;
  const hasLabels = Object.keys(labels).length > 0;
  return {
    architecture,
    ...(variant !== undefined && { variant }),
    os,
    ...(facts.author !== undefined && { author: facts.author }),
    ...(facts.createdAt !== undefined && { created: facts.createdAt.toISOString() }),
    config: hasLabels ? { ...config, Labels: { ...config.Labels, ...labels } } : config,
    ...(facts.inlineCache !== undefined && { [INLINE_FIELD]: facts.inlineCache }),
    history,
  };
}
