/** The options of berthd, for flags, environment (BERTH_ENGINE_…) and file alike. */
import { type Config, choiceOption, listOption, type Program, textOption } from '../shared/config.ts';
import { LOG_LEVELS } from '../shared/log.ts';

const OPTIONS = {
  root: textOption({ description: 'directory of images, layers and containers', default: '/var/lib/berth' }),
  runDir: textOption({ description: 'directory of what does not outlive a boot', default: '/run/berth' }),
  listen: textOption({ description: 'socket of the Engine API', default: 'unix:///run/berth/berth.sock' }),
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
    description: 'registries (HOST:PORT) that are spoken to over plain http, besides those on loopback',
    default: [],
  }),
  logLevel: choiceOption({ description: 'least important lines to log', choices: LOG_LEVELS, default: 'info' }),
} as const;

export type EngineConfig = Config<typeof OPTIONS>;

export const PROGRAM: Program<typeof OPTIONS> = { name: 'berthd', envPrefix: 'BERTH_ENGINE_', options: OPTIONS };
