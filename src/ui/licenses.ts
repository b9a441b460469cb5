import { readFileSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { Plugin } from 'vite';

/** What a library's package.json says about it. */
interface Package {
  name: string;
  version: string;
  license: string;
}

/**
 * Writes `licenses.txt`: the licence texts of every library that is part of the bundle, found by the
 * modules that really are in it. A library without a licence text ends the build.
 */
export function licenses(): Plugin {
  return {
    name: 'licenses',
    apply: 'build',
    generateBundle(_options, bundle) {
      const folders = new Set<string>();
      for (const id of this.getModuleIds()) {
        const folder = packageFolder(id);
        if (folder !== null) folders.add(folder);
      }
      if (Object.keys(bundle).length === 0) return;
      const texts = [...folders].map(describe).sort((a, b) => (a < b ? -1 : 1));
      this.emitFile({ type: 'asset', fileName: 'licenses.txt', source: texts.join(`\n${'='.repeat(80)}\n\n`) });
    },
  };
}

/** The folder of the library that a module belongs to, or null for the page's own modules. */
function packageFolder(id: string): string | null {
  const path = id.replace(/^\0/, '').split('?')[0] ?? '';
  const found = /^(.*\/node_modules\/(?:@[^/]+\/)?[^/]+)\//.exec(path);
  return found?.[1] ?? null;
}

/** A library's name, version and licence, and after them its licence files. */
function describe(folder: string): string {
  const about = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as Package;
  const files = readdirSync(folder)
    .filter((name) => /^(licen[cs]e|notice)/i.test(name))
    .sort();
  if (files.length === 0) throw new Error(`${about.name} in ${dirname(folder)} has no licence text`);
  const texts = files.map((name) => readFileSync(join(folder, name), 'utf8').replaceAll('\r\n', '\n').trim());
  return `${about.name} ${about.version} (${about.license})\n\n${texts.join('\n\n')}\n`;
}
