/** How webhooks are configured: a list of endpoints. */
import { z } from 'zod';
import { structureOption } from '../../shared/config.ts';
import { EVENT_ACTIONS } from './events.ts';

const endpointSchema = z.strictObject({
  name: z.string().regex(/^[A-Za-z0-9._-]{1,64}$/, 'want letters, digits and . _ -'),
  url: z.url({ protocol: /^https?$/ }),
  /** Holds the key that signs; read again when it changes. */
  secretFile: z.string(),
  actions: z.array(z.enum(EVENT_ACTIONS)).min(1).default(['push', 'delete']),
  repositories: z.array(z.string()).min(1).default(['**']),
});
export type WebhookEndpoint = z.infer<typeof endpointSchema>;

export const webhooksOption = structureOption<readonly WebhookEndpoint[]>({
  description: 'endpoints that are told of pushes, pulls and deletes: name, url, secretFile, actions, repositories',
  default: [],
  schema: z.array(endpointSchema),
});
