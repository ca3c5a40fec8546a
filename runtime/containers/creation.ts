/**
 * A container comes to be: its name is taken, its image found and kept, its options checked, its volumes claimed, and
 * only then it is made and stored. When a step fails, nothing is left of those before.
 */
import { AppError, isKind, messageOf } from '../../shared/errors.ts';
import type { Lease } from '../images/images.ts';
import type { ContainerRecord } from './container.ts';
import type { ContainerTable } from './container-table.ts';
import { claimVolumes, releaseVolumes } from './container-volumes.ts';
import type { ContainerBase, Created, CreateOptions } from './containers.ts';
import { planContainer } from './create-plan.ts';
import { hostLinks } from './links.ts';
import { LiveContainer, type LivePorts } from './live-container.ts';
import { containerOfMode } from './namespaces.ts';
import { networkKindOf, planEndpoints, sandboxRequestOf } from './networking.ts';
import type { CreateRequest } from './request.ts';

/** See Containers.create. */
export async function createContainer(
  request: CreateRequest,
  options: CreateOptions,
  { ports, table }: { readonly ports: LivePorts; readonly table: ContainerTable },
): Promise<Created> {
  const reference = request.config.Image;
  // Before the image is looked for: nobody should pull one first, and in vain.
  if (ports.obstacle !== undefined) throw new AppError('unsupported', `cannot run a container: ${ports.obstacle}`);
  if (reference === '' && options.base === undefined) throw new AppError('invalid', 'no command specified');
  const id = ports.randomId();
  const name = options.name === undefined ? table.takeAnyName(ports.random, id) : table.takeName(options.name, id);
  let hasImage = false;
  try {
    await using lease = ports.images.lease();
    const base = options.base ?? (await imageBase(ports, lease, { reference, platform: options.platform }));
    hasImage = true;
    const { warnings, mountPlan, ...plan } = planContainer(request, base.config, {
      id,
      host: ports.host,
      mountsOf: (container) => table.find(container).record.mounts,
    });
    for (const { target } of hostLinks(plan.hostConfig)) mustExist(table, target);
    const { PidMode, IpcMode } = plan.hostConfig;
    for (const mode of [PidMode, IpcMode]) {
      const joined = containerOfMode(mode);
      if (joined !== undefined) table.find(joined);
    }
    await using undo = new AsyncDisposableStack();
    const mounts = await claimVolumes(ports, mountPlan, { id, chain: base.chain });
    undo.defer(() => releaseVolumes(ports, { id, mounts }, { anonymous: true }));
    const record: ContainerRecord = {
      id,
      name,
      createdAt: ports.now(),
      imageId: base.imageId,
      imageName: reference,
      chain: base.chain,
      platform: base.platform,
      ...plan,
      mounts,
      endpoints: planEndpoints(
        { ...plan, endpoints: request.endpoints },
        (network) => ports.networks.inspect(network).record.name,
      ),
      state: { status: 'created' },
      restartCount: 0,
      stoppedByUser: false,
    };
    if (networkKindOf(record.hostConfig) === 'networks') ports.networks.check(sandboxRequestOf(record));
    const container = new LiveContainer(record, ports);
    await container.create();
    undo.move();
    table.add(container);
    return { id, warnings };
  } catch (error) {
    table.freeName(name);
    throw hasImage ? notTheImage(error) : error;
  }
}

async function imageBase(
  ports: LivePorts,
  lease: Lease,
  { reference, platform }: { readonly reference: string; readonly platform: string | undefined },
): Promise<ContainerBase> {
  const image = await ports.images.resolve(reference);
  await lease.protectImage(image);
  checkPlatform(platform, image.config);
  const { config, os, architecture } = image.config;
  return { imageId: image.id, config, chain: image.chain, platform: { os, architecture } };
}

/** @throws AppError 'invalid' with Docker's words: 'not-found' would be the image */
function mustExist(table: ContainerTable, target: string): void {
  try {
    table.find(target);
  } catch (error) {
    throw new AppError('invalid', `could not get container for ${target}: ${messageOf(error)}`, { cause: error });
  }
}

/** Clients take the 'not-found' of a create for the image's, and pull one: of anything else it is 'invalid'. */
function notTheImage(error: unknown): unknown {
  return isKind(error, 'not-found') ? new AppError('invalid', error.message, { cause: error }) : error;
}

function checkPlatform(
  wanted: string | undefined,
  image: { readonly os: string; readonly architecture: string; readonly variant: string | undefined },
): void {
  if (wanted === undefined || wanted === '') return;
  const [os, architecture, variant] = wanted.split('/');
  const isSame =
    os === image.os &&
    (architecture === undefined || architecture === image.architecture) &&
    (variant === undefined || image.variant === undefined || variant === image.variant);
  if (!isSame)
    throw new AppError(
      'not-found',
      `image with reference was found but its platform (${image.os}/${image.architecture}) does not match the specified platform (${wanted})`,
    );
}
