//! Gradients, chunk by chunk from the last to the first, on any device.
//!
//! The adjoint of the chunked form in [`reference`](crate::wkv7::reference), in f32. With `A B K R` the scaled rows of a chunk,
//! `V` its values, `S` the state before it, `D = diag(W_last)` and
//!
//! ```text
//! P = low(A B^T)   Q = low(A K^T)   E = tri(R B^T)   F = tri(R K^T)      U = A S^T + Q V + P U
//! ```
//!
//! the gradients follow from `dY` and `G = dS_after D`:
//!
//! ```text
//! dU = E^T dY + B G^T        dX = dU + P^T dX         dV = F^T dY + Q^T dX + K G^T
//! dP = low(dX U^T)           dQ = low(dX V^T)         dE = tri(dY U^T)      dF = tri(dY V^T)
//! dR = dY S + dE B + dF K    dB = U G + dE^T R + dP^T A
//! dA = dX S + dP B + dQ K    dK = V G + dF^T R + dQ^T A                      dS = G + dY^T R + dX^T A
//! ```
//!
//! and those of the inputs by scaling back; `ln w_s` collects `R dR - B dB - K dK` of all tokens from `s` on, `A dA` of those after
//! `s`, and the column sums of `dS_after S_after`. Nothing is divided by a decay of more than one chunk.
//!
//! One cube works on a head with two units per row: unit `i` of the first half owns row `i` (a value) of `dS`, unit `i` of the second half
//! owns column `i` (a key). What a unit computes for the tokens of a chunk stays in its registers; what others need goes through shared
//! memory as quads of four tokens. Both triangular systems are solved by substitution, each row by its own unit.

use cubecl::prelude::*;

use crate::cube::Quad;

/// One cube of `2 size` units per (head, batch), for tokens `first ..` up to `first + span` or the end. Sequences are `[batch, time, heads, head_size]`;
/// `states` holds the states before each chunk of `tokens` tokens of this span, `[batch, heads, chunk, key/4, value, 4]`, once as quads and once as
/// numbers; gradients of states are `[batch, heads, value, key]`.
#[cube(launch_unchecked)]
pub(super) fn wkv7_backward<F: Float>(
    receptance: &Array<F>,
    log_decay: &Array<F>,
    key: &Array<F>,
    value: &Array<F>,
    removal: &Array<F>,
    replacement: &Array<F>,
    state_quads: &Array<Quad>,
    states: &Array<f32>,
    d_output: &Array<F>,
    d_state_after: &Array<f32>,
    d_receptance: &mut Array<F>,
    d_log_decay: &mut Array<F>,
    d_key: &mut Array<F>,
    d_value: &mut Array<F>,
    d_removal: &mut Array<F>,
    d_replacement: &mut Array<F>,
    d_state_before: &mut Array<f32>,
    time: usize,
    heads: usize,
    first: usize,
    span: usize,
    #[comptime] size: usize,
    #[comptime] tokens: usize,
    #[comptime] unrolled: bool,
    #[define(F)] _dtype: StorageType,
) {
    let quads = comptime!(tokens / 4); // per channel of a tile
    let unit = UNIT_POS as usize;
    let owns_row = unit < size;
    let channel = unit % size; // the value of a row, the key of a column
    let head = CUBE_POS_X as usize;
    let batch = CUBE_POS_Y as usize;
    let sequence = batch * heads + head;
    let end = min(first + span, time);
    let chunks = (end - first).div_ceil(tokens);

    // Tiles, [channel, token/4] quads: scaled rows by key, the others by value.
    let mut receptances = SharedMemory::<Quad>::new(comptime!(size * quads));
    let mut keys = SharedMemory::<Quad>::new(comptime!(size * quads));
    let mut removals = SharedMemory::<Quad>::new(comptime!(size * quads));
    let mut replacements = SharedMemory::<Quad>::new(comptime!(size * quads));
    let mut values = SharedMemory::<Quad>::new(comptime!(size * quads));
    let mut d_outputs = SharedMemory::<Quad>::new(comptime!(size * quads));
    let mut removed = SharedMemory::<Quad>::new(comptime!(size * quads)); // U
    let mut d_reads = SharedMemory::<Quad>::new(comptime!(size * quads)); // dX
    let mut chunk_decays = SharedMemory::<f32>::new(size);
    // P, Q, E, F and then their gradients, [matrix, later token, earlier token]
    let mut between = SharedMemory::<f32>::new(comptime!(4 * tokens * tokens));
    let mut partial = SharedMemory::<Quad>::new(comptime!(partial_quads(size, tokens)));

    // A row or a column of dS.
    let mut own = Array::<f32>::new(size);
    #[unroll(unrolled)]
    for i in 0..size {
        own[i] = 0.0;
    }
    let d_state_at = sequence * size * size;
    if owns_row {
        #[unroll(unrolled)]
        for i in 0..size {
            own[i] = d_state_after[d_state_at + channel * size + i];
        }
    } else {
        #[unroll(unrolled)]
        for i in 0..size {
            own[i] = d_state_after[d_state_at + i * size + channel];
        }
    }

    for back in 0..chunks {
        let chunk = chunks - 1 - back;
        let start = first + chunk * tokens;
        let first_at = ((batch * time + start) * heads + head) * size + channel;
        let stride = heads * size;
        let state_at = (sequence * (span / tokens) + chunk) * size * size;

        // Of a column: W before each token, and after the last. What shared memory holds is read again where it is used: registers are short.
        let mut decays = Array::<f32>::new(comptime!(tokens + 1));
        if owns_row {
            #[unroll]
            for q in 0..quads {
                let mut v_quad = Quad::new(0.0);
                let mut dy_quad = Quad::new(0.0);
                #[unroll]
                for c in 0..4usize {
                    let t = comptime!(q * 4 + c);
                    if start + t < end {
                        let at = first_at + t * stride;
                        v_quad[c] = f32::cast_from(value[at]);
                        dy_quad[c] = f32::cast_from(d_output[at]);
                    }
                }
                values[channel * quads + q] = v_quad;
                d_outputs[channel * quads + q] = dy_quad;
            }
        } else {
            let mut log_up_to = 0.0f32;
            decays[0] = 1.0;
            #[unroll]
            for q in 0..quads {
                let mut r_quad = Quad::new(0.0);
                let mut k_quad = Quad::new(0.0);
                let mut a_quad = Quad::new(0.0);
                let mut b_quad = Quad::new(0.0);
                #[unroll]
                for c in 0..4usize {
                    let t = comptime!(q * 4 + c);
                    if start + t < end {
                        let at = first_at + t * stride;
                        a_quad[c] = f32::cast_from(removal[at]) * decays[t];
                        log_up_to += f32::cast_from(log_decay[at]);
                        let up_to = log_up_to.exp();
                        let grow = (-log_up_to).exp();
                        r_quad[c] = f32::cast_from(receptance[at]) * up_to;
                        k_quad[c] = f32::cast_from(key[at]) * grow;
                        b_quad[c] = f32::cast_from(replacement[at]) * grow;
                    }
                    decays[comptime!(t + 1)] = log_up_to.exp();
                }
                receptances[channel * quads + q] = r_quad;
                keys[channel * quads + q] = k_quad;
                removals[channel * quads + q] = a_quad;
                replacements[channel * quads + q] = b_quad;
            }
            chunk_decays[channel] = decays[tokens];
        }
        sync_cube();

        products(
            &removals,
            &receptances,
            &replacements,
            &keys,
            &mut partial,
            &mut between,
            size,
            tokens,
        );

        // Of a column: the parts of the gradients that come through S and G.
        let mut dr = Array::<Quad>::new(quads);
        let mut dk = Array::<Quad>::new(quads);
        let mut d_log = 0.0f32;
        #[unroll]
        for q in 0..quads {
            dr[q] = Quad::new(0.0);
            dk[q] = Quad::new(0.0);
        }
        if owns_row {
            // [token] each: X, then U in its place; dU, then dX in its place; dV.
            let mut x = Array::<Quad>::new(quads);
            let mut du = Array::<Quad>::new(quads);
            let mut dv = Array::<Quad>::new(quads);
            #[unroll]
            for q in 0..quads {
                x[q] = Quad::new(0.0);
                du[q] = Quad::new(0.0);
                dv[q] = Quad::new(0.0);
            }
            #[unroll(unrolled)]
            for i4 in 0..comptime!(size / 4) {
                let state = state_quads[state_at / 4 + i4 * size + channel];
                #[unroll]
                for c in 0..4usize {
                    let i = i4 * 4 + c;
                    let g = own[i] * chunk_decays[i];
                    own[i] = g;
                    let s = Quad::cast_from(state[c]);
                    let g = Quad::cast_from(g);
                    #[unroll]
                    for q in 0..quads {
                        x[q] += s * removals[i * quads + q];
                        du[q] += g * replacements[i * quads + q];
                        dv[q] += g * keys[i * quads + q];
                    }
                }
                no_further_ahead(unrolled);
            }
            let v = of_channel(&values, channel, quads);
            let mut u_t = Array::<f32>::new(tokens);
            #[unroll]
            for t in 0..tokens {
                let mut sum = x[comptime!(t / 4)][comptime!(t % 4)];
                #[unroll]
                for s in 0..t {
                    sum += between[comptime!(at(0, t, s, tokens))] * u_t[s];
                    sum += between[comptime!(at(1, t, s, tokens))]
                        * v[comptime!(s / 4)][comptime!(s % 4)];
                }
                u_t[t] = sum;
                no_further_ahead(unrolled);
            }
            let dy = of_channel(&d_outputs, channel, quads);
            let mut dx_t = Array::<f32>::new(tokens);
            #[unroll]
            for back in 0..tokens {
                let t = comptime!(tokens - 1 - back);
                let mut d_removed = du[comptime!(t / 4)][comptime!(t % 4)];
                let mut d_value_t = dv[comptime!(t / 4)][comptime!(t % 4)];
                #[unroll]
                for s in t..tokens {
                    let dy_s = dy[comptime!(s / 4)][comptime!(s % 4)];
                    d_removed += between[comptime!(at(2, s, t, tokens))] * dy_s;
                    d_value_t += between[comptime!(at(3, s, t, tokens))] * dy_s;
                }
                #[unroll]
                for s in comptime!(t + 1)..tokens {
                    d_removed += between[comptime!(at(0, s, t, tokens))] * dx_t[s];
                    d_value_t += between[comptime!(at(1, s, t, tokens))] * dx_t[s];
                }
                dx_t[t] = d_removed;
                if start + t < end {
                    d_value[first_at + t * stride] = F::cast_from(d_value_t);
                }
                no_further_ahead(unrolled);
            }
            #[unroll]
            for q in 0..quads {
                let mut u_quad = Quad::new(0.0);
                let mut dx_quad = Quad::new(0.0);
                #[unroll]
                for c in 0..4usize {
                    u_quad[c] = u_t[comptime!(q * 4 + c)];
                    dx_quad[c] = dx_t[comptime!(q * 4 + c)];
                }
                removed[channel * quads + q] = u_quad;
                d_reads[channel * quads + q] = dx_quad;
            }
        } else {
            let decay = decays[tokens];
            let column_at = state_at + channel / 4 * 4 * size + channel % 4;
            #[unroll(unrolled)]
            for i4 in 0..comptime!(size / 4) {
                #[unroll]
                for c in 0..4usize {
                    let i = i4 * 4 + c;
                    let g = own[i] * decay;
                    own[i] = g;
                    let s = states[column_at + i * 4];
                    d_log += g * s;
                    let s = Quad::cast_from(s);
                    let g = Quad::cast_from(g);
                    #[unroll]
                    for q in 0..quads {
                        dr[q] += s * d_outputs[i * quads + q];
                        dk[q] += g * values[i * quads + q];
                    }
                }
                no_further_ahead(unrolled);
            }
        }
        sync_cube();

        products(
            &d_reads,
            &d_outputs,
            &removed,
            &values,
            &mut partial,
            &mut between,
            size,
            tokens,
        );

        if owns_row {
            let dy = of_channel(&d_outputs, channel, quads);
            let dx = of_channel(&d_reads, channel, quads);
            #[unroll(unrolled)]
            for i4 in 0..comptime!(size / 4) {
                #[unroll]
                for c in 0..4usize {
                    let i = i4 * 4 + c;
                    let mut sum = Quad::new(0.0);
                    #[unroll]
                    for q in 0..quads {
                        sum += dy[q] * receptances[i * quads + q];
                        sum += dx[q] * removals[i * quads + q];
                    }
                    own[i] += total(sum);
                }
                no_further_ahead(unrolled);
            }
        } else {
            let r = of_channel(&receptances, channel, quads);
            let a = of_channel(&removals, channel, quads);
            let mut da = Array::<Quad>::new(quads);
            let mut db = Array::<Quad>::new(quads);
            #[unroll]
            for q in 0..quads {
                da[q] = Quad::new(0.0);
                db[q] = Quad::new(0.0);
            }
            let column_at = state_at + channel / 4 * 4 * size + channel % 4;
            #[unroll(unrolled)]
            for i4 in 0..comptime!(size / 4) {
                #[unroll]
                for c in 0..4usize {
                    let i = i4 * 4 + c;
                    let s = Quad::cast_from(states[column_at + i * 4]);
                    let g = Quad::cast_from(own[i]);
                    let mut sum = Quad::new(0.0);
                    #[unroll]
                    for q in 0..quads {
                        let d_read = d_reads[i * quads + q];
                        da[q] += s * d_read;
                        db[q] += g * removed[i * quads + q];
                        sum += r[q] * d_outputs[i * quads + q];
                        sum += a[q] * d_read;
                    }
                    own[i] += total(sum);
                    no_further_ahead(unrolled);
                }
            }
            let b = of_channel(&replacements, channel, quads);
            let k = of_channel(&keys, channel, quads);
            // sum over values of dS_after S_after = G (S + U^T B + V^T K)
            let mut sum = Quad::new(0.0);
            #[unroll]
            for q in 0..quads {
                sum += db[q] * b[q] + dk[q] * k[q];
            }
            d_log += total(sum);

            #[unroll]
            for back in 0..tokens {
                let t = comptime!(tokens - 1 - back);
                let mut dr_t = dr[comptime!(t / 4)][comptime!(t % 4)];
                let mut da_t = da[comptime!(t / 4)][comptime!(t % 4)];
                #[unroll]
                for s in 0..t {
                    let b_s = b[comptime!(s / 4)][comptime!(s % 4)];
                    let k_s = k[comptime!(s / 4)][comptime!(s % 4)];
                    da_t += between[comptime!(at(0, t, s, tokens))] * b_s;
                    da_t += between[comptime!(at(1, t, s, tokens))] * k_s;
                    dr_t += between[comptime!(at(2, t, s, tokens))] * b_s;
                    dr_t += between[comptime!(at(3, t, s, tokens))] * k_s;
                }
                let a_t = a[comptime!(t / 4)][comptime!(t % 4)];
                let b_t = b[comptime!(t / 4)][comptime!(t % 4)];
                let k_t = k[comptime!(t / 4)][comptime!(t % 4)];
                let r_t = r[comptime!(t / 4)][comptime!(t % 4)];
                dr_t += between[comptime!(at(2, t, t, tokens))] * b_t;
                dr_t += between[comptime!(at(3, t, t, tokens))] * k_t;

                let mut db_t = db[comptime!(t / 4)][comptime!(t % 4)];
                let mut dk_t = dk[comptime!(t / 4)][comptime!(t % 4)];
                #[unroll]
                for s in t..tokens {
                    let r_s = r[comptime!(s / 4)][comptime!(s % 4)];
                    db_t += between[comptime!(at(2, s, t, tokens))] * r_s;
                    dk_t += between[comptime!(at(3, s, t, tokens))] * r_s;
                }
                #[unroll]
                for s in comptime!(t + 1)..tokens {
                    let a_s = a[comptime!(s / 4)][comptime!(s % 4)];
                    db_t += between[comptime!(at(0, s, t, tokens))] * a_s;
                    dk_t += between[comptime!(at(1, s, t, tokens))] * a_s;
                }

                d_log += r_t * dr_t - b_t * db_t - k_t * dk_t;
                if start + t < end {
                    let at = first_at + t * stride;
                    let up_to = decays[comptime!(t + 1)];
                    d_log_decay[at] = F::cast_from(d_log);
                    d_receptance[at] = F::cast_from(dr_t * up_to);
                    d_removal[at] = F::cast_from(da_t * decays[t]);
                    d_replacement[at] = F::cast_from(db_t / up_to);
                    d_key[at] = F::cast_from(dk_t / up_to);
                }
                d_log += a_t * da_t;
                no_further_ahead(unrolled);
            }
        }
        // The next chunk's products must not start before these are read.
        sync_cube();
    }

    if owns_row {
        #[unroll(unrolled)]
        for i in 0..size {
            d_state_before[d_state_at + channel * size + i] = own[i];
        }
    }
}

/// Keeps the compiler from loading what comes after this before it, which it does over written-out loops until it runs out of registers.
#[cube]
fn no_further_ahead(#[comptime] unrolled: bool) {
    if comptime!(unrolled) {
        sync_plane();
    }
}

/// All tokens of a channel.
#[cube]
fn of_channel(tile: &SharedMemory<Quad>, channel: usize, #[comptime] quads: usize) -> Array<Quad> {
    let mut tokens = Array::<Quad>::new(quads);
    #[unroll]
    for q in 0..quads {
        tokens[q] = tile[channel * quads + q];
    }
    tokens
}

/// Where `between` holds element (`later`, `earlier`) of a matrix.
fn at(matrix: usize, later: usize, earlier: usize, tokens: usize) -> usize {
    (matrix * tokens + later) * tokens + earlier
}

/// Blocks of 4 x 4 tokens on and below the diagonal, in all four matrices.
fn blocks(tokens: usize) -> usize {
    let quads = tokens / 4;
    4 * quads * (quads + 1) / 2
}

/// How many shares the channels are cut into: a power of two, so many that a unit has at most one block of one share, and no more than 32, as their
/// sums must fit into 32 KiB beside the tiles.
fn shares(size: usize, tokens: usize) -> usize {
    let most = (2 * size / blocks(tokens)).min(32);
    1 << most.ilog2()
}

/// Room for the shares of all blocks.
fn partial_quads(size: usize, tokens: usize) -> usize {
    shares(size, tokens) * blocks(tokens) * 4
}

/// The four lower triangles `left right^T`, summed over channels, into `between`: matrices 0 and 1 pair `strict` with `first` and `second`, 2 and 3
/// pair `full` with them. Elements above the diagonal are never read, nor is the diagonal of matrices 0 and 1. Ends with all units in step.
#[cube]
fn products(
    strict: &SharedMemory<Quad>,
    full: &SharedMemory<Quad>,
    first: &SharedMemory<Quad>,
    second: &SharedMemory<Quad>,
    partial: &mut SharedMemory<Quad>,
    between: &mut SharedMemory<f32>,
    #[comptime] size: usize,
    #[comptime] tokens: usize,
) {
    let quads = comptime!(tokens / 4);
    let count = comptime!(blocks(tokens));
    let shares = comptime!(shares(size, tokens));
    let unit = UNIT_POS as usize;
    let block = unit % count;
    let share = unit / count;
    // Block 0 is (0, 0), 1 is (1, 0), 2 is (1, 1), as far as there are as many.
    let matrix = block % 4;
    let later = (block + 4) / 8;
    let earlier = block / 8;
    if share < shares {
        let mut sums = Array::<Quad>::new(4usize);
        #[unroll]
        for c in 0..4usize {
            sums[c] = Quad::new(0.0);
        }
        for i in 0..comptime!(size / shares) {
            let channel = i * shares + share;
            let left = if matrix < 2 {
                strict[channel * quads + later]
            } else {
                full[channel * quads + later]
            };
            let right = if matrix % 2 == 1 {
                second[channel * quads + earlier]
            } else {
                first[channel * quads + earlier]
            };
            #[unroll]
            for c in 0..4usize {
                sums[c] += Quad::cast_from(left[c]) * right;
            }
        }
        #[unroll]
        for c in 0..4usize {
            partial[(share * count + block) * 4 + c] = sums[c];
        }
    }
    sync_cube();
    let mut i = unit;
    while i < comptime!(count * 4) {
        let mut sum = partial[i];
        for share in 1..shares {
            sum += partial[share * count * 4 + i];
        }
        let block = i / 4;
        let later = (block + 4) / 8 * 4 + i % 4;
        let earlier = block / 8 * 4;
        let to = (block % 4 * tokens + later) * tokens + earlier;
        #[unroll]
        for c in 0..4usize {
            between[to + c] = sum[c];
        }
        i += CUBE_DIM as usize;
    }
    sync_cube();
}

/// The sum of the four values.
#[cube]
fn total(quad: Quad) -> f32 {
    (quad[0] + quad[1]) + (quad[2] + quad[3])
}
