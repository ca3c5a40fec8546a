/** The commands of `berth`: which groups there are, and in which order help shows them. */
import type { Command } from 'commander';
import { declareBuilds } from './declare/builds.ts';
import { declareContainers } from './declare/containers.ts';
import { createGroup, inspecting, type Place } from './declare/group.ts';
import { declareImages } from './declare/images.ts';
import { declareManifests } from './declare/manifests.ts';
import { declareNetworks } from './declare/networks.ts';
import { declareRun } from './declare/run.ts';
import { declareSystem } from './declare/system.ts';
import { declareVolumes } from './declare/volumes.ts';

/** Only declares; nothing that a command needs is loaded before it runs. */
export function buildProgram(place: Place): Command {
  const { program, act } = place;
  program.enablePositionalOptions();
  const containers = createGroup(place, 'container', 'manage containers');
  const images = createGroup(place, 'image', 'manage images');
  const volumes = createGroup(place, 'volume', 'manage volumes');
  const builder = createGroup(place, 'builder', 'manage the build cache');
  const system = createGroup(place, 'system', 'manage the engine');
  const manifests = createGroup(place, 'manifest', 'manage indexes of images for several platforms');
  const networks = createGroup(place, 'network', 'manage networks');
  declareNetworks(networks, place);
  declareRun(containers, place);
  declareContainers(containers, place);
  declareImages(images, place);
  declareBuilds({ images, builder }, place);
  declareManifests(manifests, place);
  inspecting(act)(program.command('inspect'));
  declareVolumes(volumes, place);
  declareSystem(system, place);
  return program;
}
