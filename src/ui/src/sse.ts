/** Reads server-sent events from a response's body, comments included, which `EventSource` hides. */

export type SseItem = { kind: 'event'; event: string; data: string } | { kind: 'comment'; text: string };

/** Yields what a body says. Bytes may be cut anywhere, and lines may end in LF, CR or CRLF. */
export async function* readSse(body: ReadableStream<Uint8Array>): AsyncGenerator<SseItem> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const parser = new SseParser();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
    yield* parser.push(decoder.decode());
    yield* parser.finish();
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

/** Turns text, however it is cut, into events and comments. */
export class SseParser {
  private rest = '';
  private afterCr = false;
  private event = '';
  private data: string[] = [];

  *push(text: string): Generator<SseItem> {
    this.rest += text;
    let start = 0;
    for (let at = 0; at < this.rest.length; at += 1) {
      const char = this.rest[at];
      if (char === '\n' && this.afterCr && at === start) {
        this.afterCr = false;
        start = at + 1;
        continue;
      }
      if (char !== '\n' && char !== '\r') continue;
      this.afterCr = char === '\r';
      const line = this.rest.slice(start, at);
      start = at + 1;
      yield* this.line(line);
    }
    this.rest = this.rest.slice(start);
    if (this.rest !== '') this.afterCr = false;
  }

  /** What is left when the body ends, even without a last line break. */
  *finish(): Generator<SseItem> {
    if (this.rest !== '') yield* this.line(this.rest);
    this.rest = '';
    yield* this.line('');
  }

  private *line(line: string): Generator<SseItem> {
    if (line === '') {
      if (this.data.length > 0) yield { kind: 'event', event: this.event || 'message', data: this.data.join('\n') };
      this.event = '';
      this.data = [];
      return;
    }
    const colon = line.indexOf(':');
    if (colon === 0) {
      yield { kind: 'comment', text: line.slice(1).trim() };
      return;
    }
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
    if (name === 'data') this.data.push(value);
    else if (name === 'event') this.event = value;
  }
}
