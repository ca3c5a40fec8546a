/** Networks over the Engine API: `/networks/…`. */
import { z } from 'zod';
import { AppError } from '../../shared/errors.ts';
import {
  addressUsage,
  type Engine,
  type NetworkDetails,
  type NetworkRequest,
  parseEndpointRequest,
} from '../engine.ts';
import { type ApiRouter, goTime, pathPart, queryFilters, readJson, sendJson } from './context.ts';

const text = z
  .string()
  .nullish()
  .transform((value) => value || undefined);
const flag = z
  .boolean()
  .nullish()
  .transform((value) => value ?? false);
const texts = z
  .record(z.string(), z.string())
  .nullish()
  .transform((value) => value ?? {});

const createBody = z.object({
  Name: z.string(),
  Driver: text,
  Scope: text,
  EnableIPv4: z
    .boolean()
    .nullish()
    .transform((value) => value ?? true),
  EnableIPv6: flag,
  Internal: flag,
  Attachable: flag,
  Ingress: flag,
  ConfigOnly: flag,
  ConfigFrom: z.object({ Network: text }).nullish(),
  IPAM: z
    .object({
      Driver: text,
      Options: texts,
      Config: z
        .array(z.object({ Subnet: text, IPRange: text, Gateway: text, AuxiliaryAddresses: texts, AuxAddress: texts }))
        .nullish(),
    })
    .nullish(),
  Options: texts,
  Labels: texts,
});
const connectBody = z.object({ Container: z.string().min(1), EndpointConfig: z.unknown().optional() });
const disconnectBody = z.object({ Container: z.string().min(1), Force: flag });

export function addNetworkRoutes(router: ApiRouter, engine: Engine): void {
  const { networks, containers } = engine;

  router.get('/networks', (ctx) => {
    sendJson(
      ctx,
      networks.list(queryFilters(ctx)).map((details) => networkJson(details, { withMembers: false })),
    );
  });

  router.post('/networks/create', async (ctx) => {
    const { id } = await networks.create(networkRequest(parse(createBody, await readJson(ctx))));
    sendJson(ctx, { Id: id, Warning: '' }, 201);
  });

  router.post('/networks/prune', async (ctx) => {
    const filters = queryFilters(ctx, ['label', 'label!', 'until']);
    const used = new Set(
      (await containers.list({ all: true })).flatMap(({ connections }) =>
        connections.map(({ networkName }) => networkName),
      ),
    );
    const removed = await networks.prune({ filters, used });
    sendJson(ctx, { NetworksDeleted: removed.length === 0 ? null : removed });
  });

  router.get('/networks/:name', (ctx) => {
    const details = networks.inspect(pathPart(ctx, 'name'));
    sendJson(ctx, { ...networkJson(details, { withMembers: true }), ...statusJson(details) });
  });

  router.delete('/networks/:name', async (ctx) => {
    await networks.remove(pathPart(ctx, 'name'));
    ctx.status = 204;
  });

  router.post('/networks/:name/connect', async (ctx) => {
    const { Container, EndpointConfig } = parse(connectBody, await readJson(ctx));
    await containers.connect(Container, pathPart(ctx, 'name'), parseEndpointRequest(EndpointConfig));
    sendJson(ctx, {});
  });

  router.post('/networks/:name/disconnect', async (ctx) => {
    const { Container } = parse(disconnectBody, await readJson(ctx));
    await containers.disconnect(Container, pathPart(ctx, 'name'));
    sendJson(ctx, {});
  });
}

function parse<T>(schema: z.ZodType<T>, body: unknown): T {
  const result = schema.safeParse(body);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  throw new AppError('invalid', `invalid network request: ${issue?.path.join('.') ?? ''}: ${issue?.message ?? ''}`);
}

function networkRequest(body: z.output<typeof createBody>): NetworkRequest {
  for (const [field, used] of [
    ['Ingress', body.Ingress],
    ['ConfigOnly', body.ConfigOnly],
    ['ConfigFrom', body.ConfigFrom?.Network !== undefined],
    ['Scope', body.Scope !== undefined && body.Scope !== 'local'],
  ] as const)
    if (used)
      throw new AppError(
        'unsupported',
        `cannot create network ${JSON.stringify(body.Name)}: ${field} is not supported`,
      );
  return {
    name: body.Name,
    driver: body.Driver ?? '',
    ipv4: body.EnableIPv4,
    ipv6: body.EnableIPv6,
    internal: body.Internal,
    attachable: body.Attachable,
    options: body.Options,
    labels: body.Labels,
    ipamDriver: body.IPAM?.Driver ?? '',
    ipamOptions: body.IPAM?.Options ?? {},
    ranges: (body.IPAM?.Config ?? []).map(({ Subnet, Gateway, IPRange, AuxiliaryAddresses, AuxAddress }) => ({
      subnet: Subnet,
      gateway: Gateway,
      ipRange: IPRange,
      auxiliary: { ...AuxAddress, ...AuxiliaryAddresses },
    })),
  };
}

/** Clients read the numbers as unsigned ones of 64 bits. */
const UINT64_MAX = 2n ** 64n - 1n;

function statusJson(details: NetworkDetails): Record<string, unknown> {
  const usage = addressUsage(details);
  if (usage.length === 0) return {};
  const subnets = usage.map(({ subnet, inUse, available }) => {
    const told = available > UINT64_MAX ? UINT64_MAX : available;
    return [subnet, { IPsInUse: inUse, DynamicIPsAvailable: JSON.rawJSON(String(told)) }] as const;
  });
  return { Status: { IPAM: { Subnets: Object.fromEntries(subnets) } } };
}

function networkJson(
  { record, members }: NetworkDetails,
  { withMembers }: { readonly withMembers: boolean },
): Record<string, unknown> {
  const prefixed = (lease: { readonly address: string; readonly prefix: number } | undefined) =>
    lease === undefined ? '' : `${lease.address}/${lease.prefix}`;
  return {
    Name: record.name,
    Id: record.id,
    Created: goTime(record.createdAt),
    Scope: 'local',
    Driver: record.driver,
    EnableIPv4: record.ipv4,
    EnableIPv6: record.ipv6,
    IPAM: {
      Driver: 'default',
      Options: Object.keys(record.ipamOptions).length === 0 ? null : record.ipamOptions,
      Config:
        record.ranges.length === 0
          ? null
          : record.ranges.map(({ subnet, gateway, ipRange, auxiliary }) => ({
              Subnet: subnet,
              ...(ipRange !== undefined && { IPRange: ipRange }),
              ...(gateway !== undefined && { Gateway: gateway }),
              ...(Object.keys(auxiliary).length > 0 && { AuxiliaryAddresses: auxiliary }),
            })),
    },
    Internal: record.internal,
    Attachable: record.attachable,
    Ingress: false,
    ConfigFrom: { Network: '' },
    ConfigOnly: false,
    ...(withMembers && {
      Containers: Object.fromEntries(
        [...members].map(([id, { containerName, endpoint }]) => [
          id,
          {
            Name: containerName,
            EndpointID: endpoint.id,
            MacAddress: endpoint.mac,
            IPv4Address: prefixed(endpoint.ipv4),
            IPv6Address: prefixed(endpoint.ipv6),
          },
        ]),
      ),
    }),
    Options: record.options,
    Labels: record.labels,
  };
}
