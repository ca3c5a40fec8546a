/**
 * One POST of one delivery, signed as https://www.standardwebhooks.com says, so that receivers can use its libraries:
 * HMAC-SHA256 over id, time and body. Redirects are not followed: the address is the one that was configured.
 */
import { createHmac } from 'node:crypto';
import fetch from 'node-fetch';
import { messageOf } from '../../shared/errors.ts';
import { EVENT_MEDIA_TYPE } from './events.ts';

export interface SignedPost {
  readonly url: string;
  readonly key: Uint8Array;
  /** The same at each attempt: receivers drop what they have seen. */
  readonly id: string;
  readonly body: string;
  readonly at: Date;
  readonly signal: AbortSignal;
}

/** undefined = the receiver has it; otherwise why it has not. */
export async function post({ url, key, id, body, at, signal }: SignedPost): Promise<string | undefined> {
  const timestamp = String(Math.floor(at.getTime() / 1_000));
  const signature = createHmac('sha256', key).update(`${id}.${timestamp}.${body}`).digest('base64');
  try {
    // node-fetch itself fails on its own body when it is given a signal that is aborted already.
    signal.throwIfAborted();
    const response = await fetch(url, {
      method: 'POST',
      body,
      redirect: 'manual',
      signal,
      headers: {
        'content-type': EVENT_MEDIA_TYPE,
        'user-agent': 'berth-registry',
        'webhook-id': id,
        'webhook-timestamp': timestamp,
        'webhook-signature': `v1,${signature}`,
      },
    });
    // What it says does not matter, and may be without end.
    response.body?.on('error', () => {});
    if (response.body !== null && 'destroy' in response.body && typeof response.body.destroy === 'function')
      response.body.destroy();
    return response.ok ? undefined : `the receiver answered ${response.status}`;
  } catch (error) {
    return messageOf(error);
  }
}

/** `whsec_` and base64, or any other text as it is. */
export function parseWebhookSecret(text: string): Uint8Array {
  const secret = text.trim();
  return secret.startsWith('whsec_') ? Buffer.from(secret.slice('whsec_'.length), 'base64') : Buffer.from(secret);
}
