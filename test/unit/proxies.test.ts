import { describe, expect, it } from 'vitest';
import { isLoopbackHost, proxiesFromEnvironment, proxyFor } from '../../shared/proxies.ts';

const SETTINGS = { http: 'proxy:3128', https: 'http://user:pw@proxy:3129' };

describe('proxies', () => {
  it.each([
    ['http://a.example/x', '', 'http://proxy:3128/'],
    ['https://a.example/x', '', 'http://user:pw@proxy:3129/'],
    ['https://a.example/x', 'b.example', 'http://user:pw@proxy:3129/'],
    ['https://a.example/x', '*', undefined],
    ['https://a.example/x', 'a.example', undefined],
    ['https://a.example/x', 'x, A.EXAMPLE', undefined],
    ['https://a.example/x', '.example', undefined],
    ['https://a.example/x', '*.example', undefined],
    ['https://sub.a.example/x', 'a.example', undefined],
    ['https://nota.example/x', 'a.example', 'http://user:pw@proxy:3129/'],
    ['https://a.example/x', 'a.example:443', undefined],
    ['https://a.example:5000/x', 'a.example:443', 'http://user:pw@proxy:3129/'],
    ['https://10.1.2.3/x', '10.0.0.0/8', undefined],
    ['https://11.1.2.3/x', '10.0.0.0/8', 'http://user:pw@proxy:3129/'],
    ['https://10.1.2.3/x', '10.0.0.0/99', 'http://user:pw@proxy:3129/'],
    ['https://[fd00::1]/x', 'fd00::/8', undefined],
    ['https://localhost:5000/x', '', undefined],
    ['http://127.0.0.1:5000/x', '', undefined],
    ['http://[::1]:5000/x', '', undefined],
  ])('%s without %j goes through %s', (url, no, proxy) => {
    expect(proxyFor(new URL(url), { ...SETTINGS, no })?.href).toBe(proxy);
  });

  it('CVE-2016-5385: does not take HTTP_PROXY, which a request could set', () => {
    const env = { HTTP_PROXY: 'http://evil', HTTPS_PROXY: 'http://good', NO_PROXY: 'x' };
    expect(proxiesFromEnvironment(env)).toEqual({ http: undefined, https: 'http://good', no: 'x' });
  });

  it('refuses what is no proxy', () => {
    const url = new URL('https://a.example/');
    for (const https of ['ftp://x', 'http://', '::'])
      expect(() => proxyFor(url, { https })).toThrow(expect.objectContaining({ kind: 'invalid' }));
    expect(proxyFor(url, { https: '' })).toBeUndefined();
  });

  it.each([
    ['localhost', true],
    ['127.0.0.1', true],
    ['127.9.9.9', true],
    ['[::1]', true],
    ['[::ffff:7f00:1]', true],
    ['127.0.0.1.evil.example', false],
    ['localhost.evil.example', false],
    ['128.0.0.1', false],
    ['[::2]', false],
  ])('%s is loopback: %s', (host, expected) => {
    expect(isLoopbackHost(host)).toBe(expected);
  });
});
