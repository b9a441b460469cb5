/** One measure of the last 15 minutes at most: its value now in large, and a chart. */
import { effect, useComputed, useSignal } from '@preact/signals';
import type { JSX } from 'preact';
import { memo } from './memo.tsx';
import { useEffect, useRef } from 'preact/hooks';
import uPlot from 'uplot';
import 'uplot/dist/uPlot.min.css';
import { sample, samples, type Sample } from './live.ts';
import { dark } from './theme.ts';
import { time } from './words.ts';

export interface Line {
  name: string;
  /** The name of a colour of the style sheet, without its dashes. */
  colour: string;
  dash?: number[];
  of: (sample: Sample) => number | null;
}

export interface PlotProps {
  title: string;
  lines: Line[];
  /** The large text. */
  headline: (sample: Sample) => string;
  /** The small text beside it. */
  note?: (sample: Sample) => string;
  /** How values of the lines are written. */
  format: (value: number) => string;
  /** The upper end of the scale; without it the largest value decides. */
  max?: number;
  /** The least that the upper end of the scale is. */
  leastMax: number;
  /** Over how many seconds the lines are averaged. */
  seconds?: number;
}

/** How far back a chart may go, in seconds: as far as a server that began lately has anything to show. */
const SPANS = [60, 180, 360, 900];
const LONGEST = 900;
const HEIGHT = 104;
/** Drawing is what a dashboard costs most; the numbers above the charts change with each sample. */
const DRAW_EVERY_MS = 5_000;

/** Nothing of it changes but by signals, so that it is drawn as a component only once. */
export const Plot = memo((props: PlotProps): JSX.Element => {
  const { title, lines, headline, note, format } = props;
  const frame = useRef<HTMLDivElement>(null);
  /** The sample under the pointer, or null. */
  const pointed = useSignal<Sample | null>(null);
  const shown = useComputed(() => pointed.value ?? sample.value);
  const large = useComputed(() => (shown.value ? headline(shown.value) : '–'));
  const small = useComputed(() => {
    if (pointed.value) return `at ${time(pointed.value.t_ms)}`;
    return sample.value && note ? note(sample.value) : '';
  });
  const spoken = useComputed(() => {
    const now = sample.value;
    if (!now) return `${title}: nothing measured yet`;
    const values = lines.map((line) => `${line.name} ${written(line.of(now), format)}`);
    return `${title}, the last minutes. Now: ${[headline(now), ...values].join(', ')}`;
  });

  useEffect(() => {
    const element = frame.current;
    if (!element) return;
    return draw(element, props, (at) => {
      pointed.value = at;
    });
  }, []);

  return (
    <section class="plot" aria-label={title}>
      <h3>{title}</h3>
      <p class="plot-now">
        <b>{large}</b> <span>{small}</span>
      </p>
      {lines.length > 1 && (
        <ul class="plot-key">
          {lines.map((line) => (
            <KeyLine key={line.name} line={line} shown={shown} format={format} />
          ))}
        </ul>
      )}
      <div ref={frame} class="plot-frame" role="img" aria-label={spoken} />
    </section>
  );
}, (before, after) => before.title === after.title);

interface KeyLineProps {
  line: Line;
  shown: { value: Sample | null };
  format: (value: number) => string;
}

function KeyLine({ line, shown, format }: KeyLineProps): JSX.Element {
  const value = useComputed(() => (shown.value ? written(line.of(shown.value), format) : '–'));
  return (
    <li>
      <svg width="12" height="8" viewBox="0 0 12 8" aria-hidden="true">
        <path d="M0 4h12" class={`stroke-${line.colour}`} stroke-dasharray={line.dash?.join(' ')} />
      </svg>
      {line.name} <span class="value">{value}</span>
    </li>
  );
}

function written(value: number | null, format: (value: number) => string): string {
  return value === null ? '–' : format(value);
}

/** Draws while it can be seen. Returns what ends it. */
function draw(element: HTMLElement, props: PlotProps, point: (sample: Sample | null) => void): () => void {
  let plot: uPlot | null = null;
  let visible = true;
  /** What is on the chart: by the time the pointer asks for one of them, there may be others. */
  let drawn: Sample[] = [];
  let drawnMs = 0;

  const data = (): uPlot.AlignedData => {
    drawn = [...samples];
    drawnMs = Date.now();
    return [
      drawn.map(({ t_ms }) => t_ms / 1000),
      ...props.lines.map((line) => averaged(drawn.map(line.of), props.seconds ?? 1)),
    ];
  };
  const update = (): void => {
    if (visible && plot) plot.setData(data());
  };
  const build = (): void => {
    plot?.destroy();
    plot = new uPlot(options(element, props, (at) => point(at === null ? null : (drawn[at] ?? null))), data(), element);
  };

  const resized = new ResizeObserver(() => {
    if (plot && element.clientWidth > 0) plot.setSize({ width: element.clientWidth, height: HEIGHT });
  });
  const seen = new IntersectionObserver((entries) => {
    visible = entries.at(-1)?.isIntersecting ?? true;
    update();
  });
  const stopTheme = effect(() => {
    void dark.value;
    build();
  });
  const stopData = effect(() => {
    void sample.value;
    // The ticks do not come on the millisecond.
    if (Date.now() - drawnMs > DRAW_EVERY_MS - 500) update();
  });
  resized.observe(element);
  seen.observe(element);
  return () => {
    stopTheme();
    stopData();
    resized.disconnect();
    seen.disconnect();
    plot?.destroy();
  };
}

/** The least span that holds so many seconds. */
function span(seconds: number): number {
  return SPANS.find((span) => span >= seconds) ?? LONGEST;
}

function ago(seconds: number): string {
  if (seconds < 1) return 'now';
  return seconds < 60 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`;
}

/** Each value's mean with those before it. */
function averaged(values: (number | null)[], over: number): (number | null)[] {
  if (over <= 1) return values;
  let sum = 0;
  return values.map((value, at) => {
    sum += (value ?? 0) - (values[at - over] ?? 0);
    return Math.max(0, sum / Math.min(over, at + 1));
  });
}

function options(element: HTMLElement, props: PlotProps, point: (at: number | null) => void): uPlot.Options {
  const style = getComputedStyle(element);
  const colour = (name: string): string => style.getPropertyValue(`--${name}`).trim();
  const font = `11px ${style.fontFamily}`;
  return {
    width: element.clientWidth || 280,
    height: HEIGHT,
    padding: [6, 14, 0, 0],
    legend: { show: false },
    cursor: { y: false, points: { size: 5 }, drag: { x: false, y: false } },
    hooks: {
      setCursor: [(plot) => point(plot.cursor.idx ?? null)],
    },
    scales: {
      x: { time: true, range: (_plot, min, max) => [max - span(max - min), max] },
      y: { range: (_plot, _min, max) => [0, props.max ?? Math.max(props.leastMax, (max || 0) * 1.15)] },
    },
    axes: [
      {
        stroke: colour('ink-3'),
        font,
        size: 20,
        gap: 4,
        grid: { show: false },
        ticks: { show: false },
        splits: (plot) => {
          const { min = 0, max = 0 } = plot.scales['x'] ?? {};
          const third = ((max ?? 0) - (min ?? 0)) / 3;
          return [3, 2, 1, 0].map((thirds) => (max ?? 0) - thirds * third);
        },
        values: (_plot, at) => {
          const now = at.at(-1) ?? 0;
          return at.map((second, place) => (place === 0 ? '' : ago(now - second)));
        },
      },
      {
        stroke: colour('ink-3'),
        font,
        size: 48,
        gap: 4,
        space: 30,
        grid: { stroke: colour('line'), width: 1 },
        ticks: { show: false },
        values: (_plot, values) => values.map((value) => props.format(value)),
      },
    ],
    series: [
      {},
      ...props.lines.map(
        (line, at): uPlot.Series => ({
          label: line.name,
          stroke: colour(line.colour),
          width: 1.5,
          points: { show: false },
          ...(line.dash ? { dash: line.dash } : {}),
          ...(at === 0 && !line.dash ? { fill: colour(`${line.colour}-fill`) } : {}),
        }),
      ),
    ],
  };
}
