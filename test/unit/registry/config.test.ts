import { describe, expect, it } from 'vitest';
import { parseListenAddress } from '../../../registry/config.ts';
import { defaultLimits } from '../../../registry/limits.ts';
import { nextLink, parsePage } from '../../../registry/paging.ts';
import { AppError } from '../../../shared/errors.ts';

describe('parseListenAddress', () => {
  it.each([
    ['127.0.0.1:5000', { host: '127.0.0.1', port: 5000, isLoopback: true }],
    ['127.1.2.3:0', { host: '127.1.2.3', port: 0, isLoopback: true }],
    ['localhost:1', { host: 'localhost', port: 1, isLoopback: true }],
    ['[::1]:5000', { host: '::1', port: 5000, isLoopback: true }],
    ['0.0.0.0:5000', { host: '0.0.0.0', port: 5000, isLoopback: false }],
    [':5000', { host: '::', port: 5000, isLoopback: false }],
    ['127.0.0.1.example.com:80', { host: '127.0.0.1.example.com', port: 80, isLoopback: false }],
  ])('reads %s', (text, address) => {
    expect(parseListenAddress(text)).toEqual(address);
  });

  it.each(['', '5000', 'host', '::1:5000', 'host:99999', 'host:'])('refuses %j', (text) => {
    expect(() => parseListenAddress(text)).toThrow(AppError);
  });
});

describe('pages', () => {
  const limits = defaultLimits();

  it.each([
    ['', { limit: 7, after: undefined }],
    ['n=3&last=a', { limit: 3, after: 'a' }],
    ['n=0', { limit: 0, after: undefined }],
    ['n=999999999999999999999', { limit: limits.pageMaxEntries, after: undefined }],
    ['last=', { limit: 7, after: undefined }],
  ])('reads %j', (query, page) => {
    expect(parsePage(new URLSearchParams(query), 7, limits)).toEqual(page);
  });

  it.each(['n=-1', 'n=1e3', 'n=', `last=${'x'.repeat(513)}`])('refuses %j', (query) => {
    expect(() => parsePage(new URLSearchParams(query), 7, limits)).toThrow(expect.objectContaining({ status: 400 }));
  });

  it('links to the next page and keeps what matters', () => {
    expect(nextLink('/v2/a/tags/list', { n: 2, last: 'b&c' })).toBe('</v2/a/tags/list?n=2&last=b%26c>; rel="next"');
    expect(nextLink('/p', { n: 2, last: 'b', keep: { artifactType: 'x/y' } })).toContain('artifactType=x%2Fy&');
  });
});
