/** Containers as rows of a list, with docker's names for the values. Pure. */
import { formatBytes, formatSpan } from '../../shared/units.ts';
import type { Row } from './output.ts';
import { ellipsis } from './table.ts';
import { type Json, list, number, object, text } from './values.ts';

export interface ContainerRowOptions {
  readonly noTrunc?: boolean | undefined;
  readonly now: number;
}

/** `0.0.0.0:8080->80/tcp, 443/tcp`. */
function portsOf(container: Json): string {
  return list(container.Ports)
    .map(object)
    .map((port) => {
      const inside = `${text(port.PrivatePort)}/${text(port.Type)}`;
      const ip = text(port.IP);
      return port.PublicPort === undefined
        ? inside
        : `${ip.includes(':') ? `[${ip}]` : ip}:${text(port.PublicPort)}->${inside}`;
    })
    .sort()
    .join(', ');
}

export function containerRows(containers: readonly unknown[], options: ContainerRowOptions): readonly Row[] {
  return containers.map(object).map((container) => {
    const id = text(container.Id);
    const createdMs = number(container.Created) * 1000;
    const command = JSON.stringify(
      options.noTrunc === true ? text(container.Command) : ellipsis(text(container.Command), 20),
    );
    const labels = Object.entries(object(container.Labels)).map(([key, value]) => `${key}=${text(value)}`);
    const image = text(container.Image);
    return {
      ID: options.noTrunc === true ? id : id.slice(0, 12),
      Image: options.noTrunc === true ? image : image.replace(/^sha256:([0-9a-f]{12})[0-9a-f]*$/, '$1'),
      Command: command,
      CreatedAt: new Date(createdMs).toISOString(),
      RunningFor: `${formatSpan(options.now - createdMs)} ago`,
      Status: text(container.Status),
      State: text(container.State),
      Ports: portsOf(container),
      Names: list(container.Names)
        .map((name) => text(name).replace(/^\//, ''))
        // Those with a slash are what linked containers call it.
        .filter((name) => options.noTrunc === true || !name.includes('/'))
        .join(','),
      Labels: labels.join(','),
      Mounts: list(container.Mounts)
        .map(object)
        .map((mount) => text(mount.Name) || text(mount.Source))
        .join(','),
      Networks: Object.keys(object(object(container.NetworkSettings).Networks)).join(','),
      Size:
        container.SizeRw === undefined && container.SizeRootFs === undefined
          ? '0B'
          : `${formatBytes(number(container.SizeRw), 3)} (virtual ${formatBytes(number(container.SizeRootFs), 3)})`,
    };
  });
}
