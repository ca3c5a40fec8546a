/** The options of berthd, for flags, environment (BERTH_ENGINE_…) and file alike. */
import {
  bytesOption,
  type Config,
  choiceOption,
  durationOption,
  listOption,
  type Program,
  structureOption,
  textOption,
} from '../shared/config.ts';
import type { EnginePlace } from '../shared/engine-place.ts';
import { LOG_LEVELS } from '../shared/log.ts';
import { mirrorsSchema, type RegistryMirrors } from './registries.ts';

const optionsAt = ({ root, runDir, socketPath }: EnginePlace) =>
  ({
    root: textOption({ description: 'directory of images, layers and containers', default: root }),
    runDir: textOption({ description: 'directory of what does not outlive a boot', default: runDir }),
    listen: textOption({ description: 'socket of the Engine API', default: `unix://${socketPath}` }),
    layerBackend: choiceOption({
      description: 'how layers are kept: EROFS images, or directories; auto takes what the kernel can mount',
      choices: ['auto', 'erofs', 'directory'],
      default: 'auto',
    }),
    ociRuntime: choiceOption({
      description: 'what runs containers; auto prefers crun',
      choices: ['auto', 'crun', 'runc'],
      default: 'auto',
    }),
    insecureRegistries: listOption({
      description:
        'registries (HOST:PORT), besides those on loopback, that may speak plain http or show any certificate',
      default: [],
    }),
    registryMirrors: structureOption<RegistryMirrors>({
      description:
        'mirrors to pull from first, by the registry that they mirror: {docker.io: [https://mirror.example]}',
      default: {},
      schema: mirrorsSchema,
    }),
    httpProxy: textOption({
      description: 'proxy for http:// (default: http_proxy of the environment)',
      default: undefined,
    }),
    httpsProxy: textOption({
      description: 'proxy for https:// (default: https_proxy of the environment)',
      default: undefined,
    }),
    noProxy: textOption({
      description: 'hosts that are reached without a proxy (default: no_proxy of the environment)',
      default: undefined,
    }),
    imageGcAgeMs: durationOption({
      description: 'remove unused images that were pulled or named longer ago; 0 = keep them',
      default: 0,
    }),
    imageGcSizeBytes: bytesOption({
      description: 'remove unused images, oldest first, while all images occupy more; 0 = no limit',
      default: 0,
    }),
    imageGcFreeBytes: bytesOption({
      description: 'remove unused images, oldest first, while less than this is free on the disk; 0 = no limit',
      default: 0,
    }),
    buildCacheMaxBytes: bytesOption({
      description: 'remove what builds have not used for longest while their cache occupies more; 0 = no limit',
      default: 20 * 2 ** 30,
    }),
    buildCacheMaxAgeMs: durationOption({
      description: 'remove from the build cache what no build has used for longer; 0 = keep it',
      default: 60 * 24 * 3600 * 1000,
    }),
    buildCacheMinFreeBytes: bytesOption({
      description: 'remove from the build cache while less than this is free on the disk; 0 = no limit',
      default: 2 ** 30,
    }),
    imageGcEveryMs: durationOption({ description: 'how often unused images are looked at', default: 600_000 }),
    addressPools: listOption({
      description: 'where subnets of networks are chosen from; those that the host already routes are left out',
      default: ['172.17.0.0/16', '172.18.0.0/15', '172.20.0.0/14', '172.24.0.0/13'],
    }),
    cdiSpecDirs: listOption({
      description:
        'where vendors describe their devices (CDI specs), for --gpus and --device VENDOR/CLASS=NAME; later ones win',
      default: ['/etc/cdi', '/var/run/cdi'],
    }),
    logLevel: choiceOption({ description: 'least important lines to log', choices: LOG_LEVELS, default: 'info' }),
  }) as const;

type EngineOptions = ReturnType<typeof optionsAt>;
export type EngineConfig = Config<EngineOptions>;

/** With the directories of `place` where nobody says otherwise. */
export function engineProgram(place: EnginePlace): Program<EngineOptions> {
  return { name: 'berthd', envPrefix: 'BERTH_ENGINE_', options: optionsAt(place) };
}
