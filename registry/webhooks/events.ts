/**
 * What happens to manifests, as others are told: the envelope of Distribution's notifications, which existing receivers
 * read. https://distribution.github.io/distribution/about/notifications/
 */
import type { Digest } from '../../shared/digest.ts';

export const EVENT_MEDIA_TYPE = 'application/vnd.docker.distribution.events.v1+json';

export const EVENT_ACTIONS = ['push', 'pull', 'delete'] as const;
export type EventAction = (typeof EVENT_ACTIONS)[number];

export interface ManifestEvent {
  readonly action: EventAction;
  readonly repository: string;
  /** Absent when a tag went and its manifest stayed. */
  readonly digest?: Digest | undefined;
  /** One event in the envelope for each; none = by digest alone. */
  readonly tags: readonly string[];
  readonly mediaType?: string | undefined;
  readonly sizeBytes?: number | undefined;
  /** Who did it. */
  readonly actor: string;
  readonly request: {
    readonly method: string;
    readonly address: string | undefined;
    readonly userAgent: string | undefined;
  };
}

/** Where handlers say what happened. */
export interface EventSink {
  /**
   * Pushes and deletes: resolves when the event is stored, so answer the client after it. Pulls: at once; they are
   * stored a moment later and lost with the process.
   */
  emit(event: ManifestEvent): Promise<void>;
}

export interface EnvelopeOptions {
  readonly at: Date;
  readonly randomId: () => string;
}

export function toEnvelope(event: ManifestEvent, { at, randomId }: EnvelopeOptions): string {
  const { action, repository, digest, mediaType, sizeBytes, actor, request } = event;
  const target = { mediaType, digest, size: sizeBytes, length: sizeBytes, repository };
  const tags = event.tags.length === 0 ? [undefined] : event.tags;
  return JSON.stringify({
    events: tags.map((tag) => ({
      id: randomId(),
      timestamp: at.toISOString(),
      action,
      target: { ...target, tag },
      request: { method: request.method, addr: request.address, useragent: request.userAgent },
      actor: { name: actor },
    })),
  });
}
