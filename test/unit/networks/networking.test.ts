import { describe, expect, it } from 'vitest';
import { planEndpoints, portWishesOf } from '../../../runtime/containers/networking.ts';
import { parseCreateRequest } from '../../../runtime/containers/request.ts';

const parse = (body: object) => parseCreateRequest({ Image: 'i', ...body });

describe('published ports', () => {
  const wishes = (body: object) => {
    const { config, hostConfig } = parse(body);
    return portWishesOf(config, hostConfig);
  };
  it.each([
    [
      { HostConfig: { PortBindings: { '80/tcp': [{ HostIp: '127.0.0.1', HostPort: '8080' }] } } },
      [{ containerPort: 80, protocol: 'tcp', hostAddress: '127.0.0.1', hostPorts: { first: 8080, last: 8080 } }],
    ],
    [
      { HostConfig: { PortBindings: { '53/udp': null } } },
      [{ containerPort: 53, protocol: 'udp', hostAddress: '', hostPorts: undefined }],
    ],
    [
      { HostConfig: { PortBindings: { 80: [{ HostPort: '8000-8010' }] } } },
      [{ containerPort: 80, protocol: 'tcp', hostAddress: '', hostPorts: { first: 8000, last: 8010 } }],
    ],
    [
      {
        ExposedPorts: { '80/tcp': {}, '81/tcp': {} },
        HostConfig: { PublishAllPorts: true, PortBindings: { '80/tcp': [{ HostPort: '1' }] } },
      },
      [
        { containerPort: 80, protocol: 'tcp', hostAddress: '', hostPorts: { first: 1, last: 1 } },
        { containerPort: 81, protocol: 'tcp', hostAddress: '', hostPorts: undefined },
      ],
    ],
  ])('reads %j', (body, expected) => {
    expect(wishes(body)).toEqual(expected);
  });
  it.each([
    [{ '0/tcp': [] }],
    [{ '70000/tcp': [] }],
    [{ '80/icmp': [] }],
    [{ '80/tcp': [{ HostIp: 'here' }] }],
    [{ '80/tcp': [{ HostIp: 'fe80::1%eth0' }] }],
    [{ '80/tcp': [{ HostPort: '9-8' }] }],
    [{ '80/tcp': [{ HostPort: '-1' }] }],
  ])('refuses %j', (PortBindings) => {
    expect(() => wishes({ HostConfig: { PortBindings } })).toThrow('invalid');
  });
});

describe('endpoints', () => {
  const plan = (body: object) => {
    const { config, hostConfig, endpoints } = parse(body);
    return planEndpoints({ config, hostConfig, endpoints }, (name) => (name === 'f00' ? 'net' : name));
  };
  it('begin with the network of the mode', () => {
    const planned = plan({
      HostConfig: { NetworkMode: 'net' },
      NetworkingConfig: { EndpointsConfig: { other: { Aliases: ['x'] }, f00: { Aliases: ['db'] } } },
    });
    expect(Object.keys(planned)).toEqual(['net', 'other']);
    expect(planned.net?.Aliases).toEqual(['db']);
  });
  it('take the MAC of old clients', () => {
    expect(plan({ MacAddress: '02:00:00:00:00:01', HostConfig: { NetworkMode: 'net' } }).net?.MacAddress).toBe(
      '02:00:00:00:00:01',
    );
  });
  it.each(['none', 'host', 'container:x'])('are none with the mode %s', (NetworkMode) => {
    expect(plan({ HostConfig: { NetworkMode }, NetworkingConfig: { EndpointsConfig: { [NetworkMode]: {} } } })).toEqual(
      {},
    );
    expect(() => plan({ HostConfig: { NetworkMode }, NetworkingConfig: { EndpointsConfig: { net: {} } } })).toThrow(
      'conflicting options',
    );
  });
});
