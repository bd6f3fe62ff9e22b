// edge program edge_dropout_5
// program edge_dropout_5 ordered maps(src)
//   input seed : dense[] int64
//   input x : at(src)[5] float32
//   %0 : edge[5] float32 = load_at x
//   %1 : dense[] int64 = load_dense seed
//   %2 : edge[5] float32 = uniform %1
//   %3 : dense[] float32 = const 0.5
//   %4 : dense[1] float32 = reshape %3
//   %5 : dense[5] float32 = expand %4
//   %6 : edge[5] bool = gt %2, %5
//   %7 : edge[5] float32 = cast %6
//   %8 : edge[5] float32 = mul %0, %7
//   %9 : row[5] float32 = segment_reduce(reduce=sum, init=0.0) %8
//   output out = %9
//   output keep = %7
// schedule
//   rows in parallel, tasks of about 4096 edges and rows, the same tasks for any number of threads
//   pass 0: blocks of 16 edges
//     narrow, lanes are edges: segment out0, output out1
extern "C" void edge_dropout_5(void* const* args, i64 num_rows, i64 num_edges, i32 threads) {
  const i64* __restrict const t0 = (const i64*)args[0];  // seed
  const f32* __restrict const t1 = (const f32*)args[1];  // x
  f32* __restrict const out0 = (f32*)args[2];  // out
  f32* __restrict const out1 = (f32*)args[3];  // keep
  const i64* __restrict const indptr = (const i64*)args[4];
  const position_t* __restrict const edge_id = (const position_t*)args[5];
  const index_t* __restrict const map0 = (const index_t*)args[6];  // src
  const i64 tasks = clamp((num_rows + num_edges) / 4096, 1, 1 << 20);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic, 1)
    for (i64 task = 0; task < tasks; ++task) {
      const i64 row_end = first_row(indptr, num_rows, num_edges, task + 1, tasks);
      for (i64 row = first_row(indptr, num_rows, num_edges, task, tasks); row < row_end; ++row) {
        const i64 begin = indptr[row], end = indptr[row + 1];
        f32* const out0_row = out0 + row * 5;
        {
          f32x16 a_out0_0 = bc<f32x16>(0.0f);
          f32x16 a_out0_1 = bc<f32x16>(0.0f);
          f32x16 a_out0_2 = bc<f32x16>(0.0f);
          f32x16 a_out0_3 = bc<f32x16>(0.0f);
          f32x16 a_out0_4 = bc<f32x16>(0.0f);
          const f32x16 n2 = bc<f32x16>(0.5f);
          for (i64 e0 = begin; e0 < end; e0 += 16) {
            const i32 n = (i32)smaller(16, end - e0);
            alignas(64) index_t at_map0[16];
            load_index<16>(at_map0, map0 + e0, n);
            alignas(64) i64 position[16];
            load_position<16>(position, edge_id, e0, n);
            alignas(64) u32 words_uniform2[16];
            random_row<16>(words_uniform2, position, t0[0]);
            const i32x16 live = iota<16>() < n;
            const f32x16 n0 = gather<f32x16>(t1 + 0, at_map0, 5);
            const f32x16 n1 = uniform<f32x16>(ld<u32x16>(words_uniform2), bc<u32x16>(0u), t0[0]);
            const i32x16 n3 = to_bool(n1 > n2);
            const f32x16 n4 = from_bool<f32x16>(n3);
            a_out0_0 = sel(live, fma(n0, n4, a_out0_0), a_out0_0);
            const f32x16 n5 = gather<f32x16>(t1 + 1, at_map0, 5);
            const f32x16 n6 = uniform<f32x16>(ld<u32x16>(words_uniform2), bc<u32x16>(1u), t0[0]);
            const i32x16 n7 = to_bool(n6 > n2);
            const f32x16 n8 = from_bool<f32x16>(n7);
            a_out0_1 = sel(live, fma(n5, n8, a_out0_1), a_out0_1);
            const f32x16 n9 = gather<f32x16>(t1 + 2, at_map0, 5);
            const f32x16 n10 = uniform<f32x16>(ld<u32x16>(words_uniform2), bc<u32x16>(2u), t0[0]);
            const i32x16 n11 = to_bool(n10 > n2);
            const f32x16 n12 = from_bool<f32x16>(n11);
            a_out0_2 = sel(live, fma(n9, n12, a_out0_2), a_out0_2);
            const f32x16 n13 = gather<f32x16>(t1 + 3, at_map0, 5);
            const f32x16 n14 = uniform<f32x16>(ld<u32x16>(words_uniform2), bc<u32x16>(3u), t0[0]);
            const i32x16 n15 = to_bool(n14 > n2);
            const f32x16 n16 = from_bool<f32x16>(n15);
            a_out0_3 = sel(live, fma(n13, n16, a_out0_3), a_out0_3);
            const f32x16 n17 = gather<f32x16>(t1 + 4, at_map0, 5);
            const f32x16 n18 = uniform<f32x16>(ld<u32x16>(words_uniform2), bc<u32x16>(4u), t0[0]);
            const i32x16 n19 = to_bool(n18 > n2);
            const f32x16 n20 = from_bool<f32x16>(n19);
            a_out0_4 = sel(live, fma(n17, n20, a_out0_4), a_out0_4);
            scatter(out1 + 0, position, 5, n4, n);
            scatter(out1 + 1, position, 5, n8, n);
            scatter(out1 + 2, position, 5, n12, n);
            scatter(out1 + 3, position, 5, n16, n);
            scatter(out1 + 4, position, 5, n20, n);
          }
          out0_row[0] = fold<Sum>(a_out0_0);
          out0_row[1] = fold<Sum>(a_out0_1);
          out0_row[2] = fold<Sum>(a_out0_2);
          out0_row[3] = fold<Sum>(a_out0_3);
          out0_row[4] = fold<Sum>(a_out0_4);
        }
      }
    }
  }
}
