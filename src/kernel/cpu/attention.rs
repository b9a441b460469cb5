//! Attention of query rows over paged keys and values.
//!
//! Separate because it alone reads the cache. One routine serves prefill and decode: a query walks its blocks of sixteen
//! tokens in order, keeping a running maximum, sum and weighted value, so its result does not depend on which other
//! queries share the walk. Neighbouring rows of one sequence, and the query heads that share a KV head, walk together,
//! which reads each block once for all of them.
//! Never here: causal masks as data, or any token past a row's position; what lies there may be anything, even not numbers.
//!
//! Source: PagedAttention (Kwon et al., SOSP 2023) eq. 4; one-pass softmax, Milakov & Gimelshein 2018, algorithm 3.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "pointer arithmetic under the caller's promise"
)]
#![allow(
    clippy::needless_range_loop,
    reason = "register tiles are indexed by query and by vector"
)]

use super::lanes::{self, Kernel, LANES, Lanes};
use super::pool::{Pool, Scratch, SharedMut};
use super::{AttentionBatch, BLOCK_TOKENS, KvCacheLayer, Tier};

const _: () = assert!(
    BLOCK_TOKENS == LANES,
    "the scores of a block are one vector"
);

/// Queries that walk the blocks together, unless one row alone has more.
const TOGETHER: usize = 32;

/// See [`crate::kernel::Cpu::attention`].
#[allow(
    clippy::too_many_arguments,
    reason = "pool and tier join the face's arguments"
)]
pub(super) fn attention(
    pool: &Pool,
    tier: Tier,
    q: &[f32],
    stride: usize,
    heads: usize,
    cache: &KvCacheLayer,
    batch: &AttentionBatch<'_>,
    scale: f32,
    out: &mut [f32],
) {
    let (kv_heads, head_dim) = (cache.kv_heads(), cache.head_dim());
    let width = heads * head_dim;
    let &AttentionBatch { tables, rows } = batch;
    assert!(
        heads > 0 && heads.is_multiple_of(kv_heads),
        "{heads} heads over {kv_heads} KV heads"
    );
    assert!(
        width <= stride,
        "{heads} heads of {head_dim} lie outside a row of {stride}"
    );
    assert_eq!(
        q.len(),
        rows.len() * stride,
        "queries and batch differ in rows"
    );
    assert_eq!(
        out.len(),
        rows.len() * width,
        "output is not [{}, {width}]",
        rows.len()
    );
    for table in tables {
        assert!(
            table.iter().all(|&block| (block as usize) < cache.blocks()),
            "a block outside the cache"
        );
    }
    let mut work = 0_usize;
    for &(sequence, position) in rows {
        let covered = tables[sequence as usize].len() * BLOCK_TOKENS;
        assert!(
            (position as usize) < covered,
            "position {position} in a table of {covered} tokens"
        );
        work = work.saturating_add((position as usize + 1) * 2 * width);
    }

    let group = heads / kv_heads;
    let most = (TOGETHER / group).max(1);
    let mut walks = Vec::with_capacity(rows.len());
    let mut start = 0;
    while start < rows.len() {
        let alike = rows[start..]
            .iter()
            .take(most)
            .take_while(|row| row.0 == rows[start].0)
            .count();
        walks.push(start..start + alike);
        start += alike;
    }
    // The longest walks are the last rows of a prefill: begin there, so that no thread is left with one at the end.
    walks.reverse();

    let out = SharedMut::new(out);
    pool.run(walks.len() * kv_heads, work, &|scratch, chunk| {
        let range = walks[chunk / kv_heads].clone();
        let kv_head = chunk % kv_heads;
        let first_head = kv_head * group * head_dim;
        // SAFETY: the tier is available by `Cpu`'s invariant; shapes, positions and block ids were checked above; this
        // chunk alone writes these rows of these heads.
        unsafe {
            let walk = Walk {
                q: q.as_ptr().add(range.start * stride + first_head),
                stride,
                group,
                kv_head,
                cache,
                table: tables[rows[range.start].0 as usize],
                out: out.at(range.start * width + first_head),
                out_stride: width,
                rows: &rows[range],
                scale,
                scratch,
            };
            lanes::run(tier, walk);
        }
    });
}

/// Some rows of one sequence, and the query heads of one KV head.
///
/// # Safety
/// Row `i`, head `g` of the queries is `head_dim` elements at `q + i * stride + g * head_dim`, likewise for `out`;
/// `table` covers every position and names blocks of the cache.
struct Walk<'a> {
    q: *const f32,
    stride: usize,
    group: usize,
    kv_head: usize,
    cache: &'a KvCacheLayer,
    table: &'a [u32],
    rows: &'a [(u32, u32)],
    scale: f32,
    out: *mut f32,
    out_stride: usize,
    scratch: &'a mut Scratch,
}

/// Per-query state of a walk, in scratch: for each query the running maximum, the running sum by lane, this block's
/// weights, and the weighted value.
#[derive(Clone, Copy)]
struct State {
    start: *mut f32,
    stride: usize,
}

impl State {
    const MAX: usize = 0;
    const SUM: usize = LANES;
    const WEIGHTS: usize = 2 * LANES;
    const VALUE: usize = 3 * LANES;

    #[inline(always)]
    unsafe fn of(self, query: usize, part: usize) -> *mut f32 {
        self.start.add(query * self.stride + part)
    }
}

impl Kernel for Walk<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let head_dim = self.cache.head_dim();
        let vectors = head_dim.div_ceil(LANES);
        let queries = self.rows.len() * self.group;
        let stride = State::VALUE + vectors * LANES;
        let (floats, active) = self.scratch.floats(queries * stride);
        let state = State {
            start: floats.as_mut_ptr(),
            stride,
        };
        for query in 0..queries {
            L::splat(f32::NEG_INFINITY).store(state.of(query, State::MAX));
            L::splat(0.0).store(state.of(query, State::SUM));
            for vector in 0..vectors {
                L::splat(0.0).store(state.of(query, State::VALUE + vector * LANES));
            }
        }

        let last = self.rows.iter().map(|row| row.1).max().unwrap_or(0) as usize;
        let asked = Asked {
            q: self.q,
            stride: self.stride,
            group: self.group,
            scale: self.scale,
        };
        let tile_of = |block: u32| {
            (block as usize * self.cache.kv_heads() + self.kv_head) * self.cache.tile_len()
        };
        for (index, &block) in self.table.iter().enumerate().take(last / BLOCK_TOKENS + 1) {
            let first_token = index * BLOCK_TOKENS;
            let next = self.table.get(index + 1).copied().unwrap_or(block);
            let keys = Tile {
                here: self.cache.k.as_ptr().add(tile_of(block)),
                next: self.cache.k.as_ptr().add(tile_of(next)),
                head_dim,
            };
            let values = Tile {
                here: self.cache.v.as_ptr().add(tile_of(block)),
                next: self.cache.v.as_ptr().add(tile_of(next)),
                head_dim,
            };
            active.clear();
            for (i, row) in self.rows.iter().enumerate() {
                if row.1 as usize >= first_token {
                    active.extend(i * self.group..(i + 1) * self.group);
                }
            }
            let mut rest = active.as_slice();
            while let Some((&query, after)) = rest.split_first() {
                rest = match (rest.first_chunk::<8>(), rest.first_chunk::<2>()) {
                    (Some(eight), _) if L::WIDE => {
                        score::<L, 8>(asked, state, eight, keys);
                        &rest[8..]
                    }
                    (_, Some(two)) => {
                        score::<L, 2>(asked, state, two, keys);
                        &rest[2..]
                    }
                    _ => {
                        score::<L, 1>(asked, state, &[query], keys);
                        after
                    }
                };
            }
            let tokens = |query: usize| {
                (self.rows[query / self.group].1 as usize + 1 - first_token).min(BLOCK_TOKENS)
            };
            let mut rest = active.as_slice();
            while let Some((&query, after)) = rest.split_first() {
                rest = match rest.first_chunk::<4>() {
                    Some(four) if L::WIDE && four.iter().all(|&q| tokens(q) == tokens(query)) => {
                        gather_all::<L, 4>(state, four, tokens(query), values);
                        &rest[4..]
                    }
                    _ => {
                        gather_all::<L, 1>(state, &[query], tokens(query), values);
                        after
                    }
                };
            }
        }

        for query in 0..queries {
            let sum = L::splat(L::load(state.of(query, State::SUM)).sum());
            let out = self
                .out
                .add(query / self.group * self.out_stride + query % self.group * head_dim);
            for at in (0..head_dim).step_by(LANES) {
                let value = L::load(state.of(query, State::VALUE + at)).div(sum);
                value.store_first(out.add(at), (head_dim - at).min(LANES));
            }
        }
    }
}

/// One head's keys or values in this block and in the next, which is asked for while this one is read.
#[derive(Clone, Copy)]
struct Tile {
    here: *const f32,
    next: *const f32,
    head_dim: usize,
}

/// Where the queries lie, and what their products are scaled by.
#[derive(Clone, Copy)]
struct Asked {
    q: *const f32,
    stride: usize,
    group: usize,
    scale: f32,
}

/// Scaled products of some queries with the sixteen keys of a block: even and odd features summed apart, then together.
#[inline(always)]
unsafe fn score<L: Lanes, const QUERIES: usize>(
    asked: Asked,
    state: State,
    queries: &[usize; QUERIES],
    keys: Tile,
) {
    let mut q = [asked.q; QUERIES];
    for i in 0..QUERIES {
        let (row, head) = (queries[i] / asked.group, queries[i] % asked.group);
        q[i] = asked.q.add(row * asked.stride + head * keys.head_dim);
    }
    let mut sums = [[L::splat(0.0); 2]; QUERIES];
    for d in (0..keys.head_dim).step_by(2) {
        for odd in 0..2 {
            let at = (d + odd) * LANES;
            let key = L::load(keys.here.add(at));
            L::prefetch(keys.next.add(at).cast());
            for i in 0..QUERIES {
                sums[i][odd] = key.mul_add(L::splat(*q[i].add(d + odd)), sums[i][odd]);
            }
        }
    }
    for i in 0..QUERIES {
        let score = sums[i][0].add(sums[i][1]).mul(L::splat(asked.scale));
        score.store(state.of(queries[i], State::WEIGHTS));
    }
}

/// Turns a block's scores into weights against the running maximum, and returns by what the past must shrink.
#[inline(always)]
unsafe fn weigh<L: Lanes>(state: State, query: usize, tokens: usize) -> L {
    let scores = state.of(query, State::WEIGHTS);
    for token in tokens..BLOCK_TOKENS {
        *scores.add(token) = f32::NEG_INFINITY;
    }
    let block = L::load(scores);
    let past = L::load(state.of(query, State::MAX));
    let most = L::splat(block.max_across()).max(past);
    most.store(state.of(query, State::MAX));
    let decay = past.sub(most).exp();
    let weights = block.sub(most).exp();
    weights.store(scores);
    let sum = L::load(state.of(query, State::SUM));
    sum.mul_add(decay, weights)
        .store(state.of(query, State::SUM));
    decay
}

/// Weighs the block for some queries that see equally many of its tokens, and adds its values to theirs.
#[inline(always)]
unsafe fn gather_all<L: Lanes, const QUERIES: usize>(
    state: State,
    queries: &[usize; QUERIES],
    tokens: usize,
    values: Tile,
) {
    let mut decays = [L::splat(0.0); QUERIES];
    for i in 0..QUERIES {
        decays[i] = weigh::<L>(state, queries[i], tokens);
    }
    let vectors = values.head_dim.div_ceil(LANES);
    let mut vector = 0;
    while vector + 4 <= vectors {
        gather::<L, QUERIES, 4>(state, queries, &decays, tokens, values, vector * LANES);
        vector += 4;
    }
    while vector < vectors {
        gather::<L, QUERIES, 1>(state, queries, &decays, tokens, values, vector * LANES);
        vector += 1;
    }
}

/// Shrinks `VECTORS` vectors of each weighted value, from feature `at` on, and adds the block's tokens in order.
#[inline(always)]
unsafe fn gather<L: Lanes, const QUERIES: usize, const VECTORS: usize>(
    state: State,
    queries: &[usize; QUERIES],
    decays: &[L; QUERIES],
    tokens: usize,
    values: Tile,
    at: usize,
) {
    let mut sums = [[L::splat(0.0); VECTORS]; QUERIES];
    for i in 0..QUERIES {
        for v in 0..VECTORS {
            sums[i][v] =
                L::load(state.of(queries[i], State::VALUE + at + v * LANES)).mul(decays[i]);
        }
    }
    for token in 0..tokens {
        let place = token * values.head_dim + at;
        let mut value = [L::splat(0.0); VECTORS];
        for v in 0..VECTORS {
            value[v] = L::load(values.here.add(place + v * LANES));
            L::prefetch(values.next.wrapping_add(place + v * LANES).cast());
        }
        for i in 0..QUERIES {
            let weight = L::splat(*state.of(queries[i], State::WEIGHTS + token));
            for v in 0..VECTORS {
                sums[i][v] = value[v].mul_add(weight, sums[i][v]);
            }
        }
    }
    for i in 0..QUERIES {
        for v in 0..VECTORS {
            sums[i][v].store(state.of(queries[i], State::VALUE + at + v * LANES));
        }
    }
}
