/** Markdown as HTML that cannot do harm: no HTML of the text's own, no images, no addresses but web and mail. */
import DOMPurify from 'dompurify';
import { Marked, type Token } from 'marked';
import type { JSX } from 'preact';
import { memo } from './memo.tsx';
import { useMemo } from 'preact/hooks';
import { copyText } from './copying.ts';
import { say } from './say.ts';

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text }) => escape(text),
    // An image would be fetched from wherever the text says, unasked.
    image: ({ href, text }) => link(href, escape(text || href)),
    link({ href, tokens }) {
      return link(href, this.parser.parseInline(tokens));
    },
    // The page has its own first and second headings, and a text may begin with any.
    heading({ tokens, depth }) {
      const level = depth <= 3 ? 3 : 4;
      return `<h${level} class="h${depth}">${this.parser.parseInline(tokens)}</h${level}>`;
    },
    code: ({ text, lang }) => codeBlock(text, lang?.split(/\s/)[0] ?? ''),
    checkbox: ({ checked }) => (checked ? '☑ ' : '☐ '),
    table(token) {
      const cell = (tag: string, tokens: Token[], align: string | null) =>
        `<${tag}${align ? ` class="align-${align}"` : ''}>${this.parser.parseInline(tokens)}</${tag}>`;
      const head = token.header.map(({ tokens, align }) => cell('th', tokens, align)).join('');
      const rows = token.rows.map((row) => `<tr>${row.map(({ tokens, align }) => cell('td', tokens, align)).join('')}</tr>`);
      return `<div class="table-scroll" tabindex="0"><table><thead><tr>${head}</tr></thead><tbody>${rows.join('')}</tbody></table></div>`;
    },
  },
});

function link(href: string, content: string): string {
  if (!/^(https?:|mailto:)/i.test(href)) return content;
  return `<a href="${escape(href)}" target="_blank" rel="noopener noreferrer">${content}</a>`;
}

function codeBlock(text: string, language: string): string {
  const name = language === '' ? 'Code' : escape(language);
  return (
    `<div class="code"><div class="code-head"><span>${name}</span><button type="button" class="text-button">Copy code</button></div>` +
    `<pre tabindex="0"><code>${escape(text)}</code></pre></div>`
  );
}

function escape(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;');
}

function clean(html: string): string {
  return DOMPurify.sanitize(html, {
    ADD_ATTR: ['target'],
    FORBID_ATTR: ['style'],
    FORBID_TAGS: ['style', 'img', 'form', 'input', 'svg', 'math', 'audio', 'video', 'picture', 'source'],
  });
}

/** One paragraph, list, block of code and so on; drawn again only when its text or what its links refer to changes. */
const Block = memo(
  ({ token }: { token: Token; links: string }): JSX.Element => (
    <div class="block" dangerouslySetInnerHTML={{ __html: clean(marked.parser([token])) }} />
  ),
  (before, after) => before.token.raw === after.token.raw && before.links === after.links,
);

export function Markdown({ text }: { text: string }): JSX.Element {
  const { tokens, links } = useMemo(() => {
    const all = marked.lexer(text);
    return { tokens: all.filter(({ type }) => type !== 'space' && type !== 'def'), links: JSON.stringify(all.links) };
  }, [text]);
  return (
    <div class="markdown" onClick={onCopyCode}>
      {tokens.map((token, at) => (
        <Block key={at} token={token} links={token.raw.includes('[') ? links : ''} />
      ))}
    </div>
  );
}

/** Code that is no part of a markdown text. */
export function Code({ text, language }: { text: string; language: string }): JSX.Element {
  return <div class="markdown" onClick={onCopyCode} dangerouslySetInnerHTML={{ __html: codeBlock(text, language) }} />;
}

function onCopyCode(event: MouseEvent): void {
  const button = event.target instanceof Element ? event.target.closest('.code-head button') : null;
  const code = button?.closest('.code')?.querySelector('code');
  if (!button || !code) return;
  void copyText(code.textContent ?? '').then((copied) => {
    button.textContent = copied ? 'Copied' : 'Not copied';
    say(copied ? 'Code copied' : 'The browser does not allow copying');
    setTimeout(() => {
      button.textContent = 'Copy code';
    }, 1500);
  });
}
