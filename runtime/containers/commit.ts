/** The config of an image that is made of a container: what the container runs. Pure. */
import type { ImageRunConfig } from '../../shared/oci.ts';
import type { ContainerConfig, Healthcheck } from './request.ts';

/** What of a container's config belongs to its image. */
export function imageConfigOf(config: ContainerConfig): ImageRunConfig {
  const set = (names: readonly string[]) => Object.fromEntries(names.map((name) => [name, {}]));
  return {
    ...(config.User !== '' && { User: config.User }),
    ...(config.ExposedPorts.length > 0 && { ExposedPorts: set(config.ExposedPorts) }),
    ...(config.Env.length > 0 && { Env: [...config.Env] }),
    ...(config.Entrypoint !== null && config.Entrypoint.length > 0 && { Entrypoint: [...config.Entrypoint] }),
    ...(config.Cmd !== null && config.Cmd.length > 0 && { Cmd: [...config.Cmd] }),
    ...(config.Volumes.length > 0 && { Volumes: set(config.Volumes) }),
    ...(config.WorkingDir !== '' && { WorkingDir: config.WorkingDir }),
    ...(Object.keys(config.Labels).length > 0 && { Labels: config.Labels }),
    ...(config.StopSignal !== '' && { StopSignal: config.StopSignal }),
    ...(config.StopTimeout !== undefined && { StopTimeout: config.StopTimeout }),
    ...(config.Healthcheck !== undefined && { Healthcheck: healthcheckOf(config.Healthcheck) }),
    ...(config.OnBuild.length > 0 && { OnBuild: [...config.OnBuild] }),
    ...(config.Shell.length > 0 && { Shell: [...config.Shell] }),
  };
}

function healthcheckOf({ Test, ...rest }: Healthcheck): NonNullable<ImageRunConfig['Healthcheck']> {
  const said = Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== 0));
  return { Test: [...Test], ...said };
}
