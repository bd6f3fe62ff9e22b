// edge program gat_forward_2x20
// program gat_forward_2x20 ordered maps(src)
//   input x : at(src)[2, 20] float32
//   input a_src : at(src)[2] float32
//   input a_dst : row[2] float32
//   %0 : row[] float32 = row_length
//   %1 : dense[] float32 = const 0.0
//   %2 : row[] bool = gt %0, %1
//   %3 : row[1, 1] bool = reshape %2
//   %4 : row[2, 20] bool = expand %3
//   %5 : edge[2, 20] float32 = load_at x
//   %6 : edge[2] float32 = load_at a_src
//   %7 : row[2] float32 = load_row a_dst
//   %8 : edge[2] float32 = add %6, %7
//   %9 : dense[1] float32 = reshape %1
//   %10 : dense[2] float32 = expand %9
//   %11 : edge[2] bool = gt %8, %10
//   %12 : dense[] float32 = const 0.2
//   %13 : dense[1] float32 = reshape %12
//   %14 : dense[2] float32 = expand %13
//   %15 : edge[2] float32 = mul %8, %14
//   %16 : edge[2] float32 = where %11, %8, %15
//   %17 : row[2] float32 = segment_reduce(reduce=max, init=0.0) %16
//   %18 : edge[2] float32 = sub %16, %17
//   %19 : edge[2] float32 = exp %18
//   %20 : edge[2, 1] float32 = reshape %19
//   %21 : edge[2, 20] float32 = expand %20
//   %22 : edge[2, 20] float32 = mul %5, %21
//   %23 : row[2, 20] float32 = segment_reduce(reduce=sum, init=0.0) %22
//   %24 : row[2] float32 = segment_reduce(reduce=sum, init=0.0) %19
//   %25 : dense[] float32 = const 1e-16
//   %26 : dense[1] float32 = reshape %25
//   %27 : dense[2] float32 = expand %26
//   %28 : row[2] float32 = add %24, %27
//   %29 : row[2, 1] float32 = reshape %28
//   %30 : row[2, 20] float32 = expand %29
//   %31 : row[2, 20] float32 = div %23, %30
//   %32 : row[2, 20] float32 = where %4, %31, %23
//   output out = %32
//   output row_max = %17
//   output row_sum = %28
// schedule
//   rows in parallel, tasks of about 4096 edges and rows, the same tasks for any number of threads
//   pass 0: blocks of 16 edges
//     narrow, lanes are edges: segment out1, keep where16
//   pass 1: blocks of 16 edges
//     narrow, lanes are edges: segment segmentreduce24, array exp19
//     wide, lanes are elements: segment segmentreduce23
//     kept from an earlier pass, not computed again: where16
extern "C" void gat_forward_2x20(void* const* args, i64 num_rows, i64 num_edges, i32 threads) {
  const f32* __restrict const t0 = (const f32*)args[0];  // x
  const f32* __restrict const t1 = (const f32*)args[1];  // a_src
  const f32* __restrict const t2 = (const f32*)args[2];  // a_dst
  f32* __restrict const out0 = (f32*)args[3];  // out
  f32* __restrict const out1 = (f32*)args[4];  // row_max
  f32* __restrict const out2 = (f32*)args[5];  // row_sum
  const i64* __restrict const indptr = (const i64*)args[6];
  const index_t* __restrict const map0 = (const index_t*)args[8];  // src
  const i64 tasks = clamp((num_rows + num_edges) / 4096, 1, 1 << 20);
#pragma omp parallel num_threads(threads)
  {
    Memory memory_kept_where16;
    alignas(64) f32 row_segmentreduce23[40];
    alignas(64) f32 row_segmentreduce24[2];
    alignas(64) f32 s1_exp19[32];
#pragma omp for schedule(dynamic, 1)
    for (i64 task = 0; task < tasks; ++task) {
      const i64 row_end = first_row(indptr, num_rows, num_edges, task + 1, tasks);
      for (i64 row = first_row(indptr, num_rows, num_edges, task, tasks); row < row_end; ++row) {
        const i64 begin = indptr[row], end = indptr[row + 1];
        const f32* const t2_row = t2 + row * 2;
        f32* const out0_row = out0 + row * 40;
        f32* const out1_row = out1 + row * 2;
        f32* const out2_row = out2 + row * 2;
        {
          f32* const all_kept_where16 = memory_kept_where16.of<f32>((end - begin + 15) / 16 * 32);
          f32x16 a_out1_0 = bc<f32x16>(-__builtin_inff());
          f32x16 a_out1_1 = bc<f32x16>(-__builtin_inff());
          const f32x16 n1 = bc<f32x16>(t2_row[0]);
          const f32x16 n3 = bc<f32x16>(0.0f);
          const f32x16 n5 = bc<f32x16>(0.200000003f);
          const f32x16 n9 = bc<f32x16>(t2_row[1]);
          for (i64 e0 = begin; e0 < end; e0 += 16) {
            const i32 n = (i32)smaller(16, end - e0);
            f32* const kept_where16 = all_kept_where16 + (e0 - begin) * 2;
            alignas(64) index_t at_map0[16];
            load_index<16>(at_map0, map0 + e0, n);
            const i32x16 live = iota<16>() < n;
            const f32x16 n0 = gather<f32x16>(t1 + 0, at_map0, 2);
            const f32x16 n2 = n0 + n1;
            const i32x16 n4 = to_bool(n2 > n3);
            const f32x16 n6 = n2 * n5;
            const f32x16 n7 = sel(n4, n2, n6);
            st(kept_where16 + 0, n7);
            const f32x16 n8 = gather<f32x16>(t1 + 1, at_map0, 2);
            const f32x16 n10 = n8 + n9;
            const i32x16 n11 = to_bool(n10 > n3);
            const f32x16 n12 = n10 * n5;
            const f32x16 n13 = sel(n11, n10, n12);
            st(kept_where16 + 16, n13);
            a_out1_0 = sel(live, maximum(a_out1_0, n7), a_out1_0);
            a_out1_1 = sel(live, maximum(a_out1_1, n13), a_out1_1);
          }
          out1_row[0] = begin < end ? fold<Max>(a_out1_0) : 0.0f;
          out1_row[1] = begin < end ? fold<Max>(a_out1_1) : 0.0f;
        }
        {
          const i64 ahead = smaller(16, num_edges - end);
          f32* const all_kept_where16 = memory_kept_where16.of<f32>((end - begin + 15) / 16 * 32);
          f32x16 a_segmentreduce24_0 = bc<f32x16>(0.0f);
          f32x16 a_segmentreduce24_1 = bc<f32x16>(0.0f);
          f32x16 a_segmentreduce23_0 = bc<f32x16>(0.0f);
          f32x16 a_segmentreduce23_1 = bc<f32x16>(0.0f);
          f32x16 a_segmentreduce23_2 = bc<f32x16>(0.0f);
          f32x16 a_segmentreduce23_3 = bc<f32x16>(0.0f);
          const f32x16 n1 = bc<f32x16>(out1_row[0]);
          const f32x16 n5 = bc<f32x16>(out1_row[1]);
          for (i64 e0 = begin; e0 < end; e0 += 16) {
            const i32 n = (i32)smaller(16, end - e0);
            f32* const kept_where16 = all_kept_where16 + (e0 - begin) * 2;
            const i32x16 live = iota<16>() < n;
            const f32x16 n0 = ld<f32x16>(kept_where16 + 0);
            const f32x16 n2 = n0 - n1;
            const f32x16 n3 = exponential(n2);
            st(s1_exp19 + 0, n3);
            const f32x16 n4 = ld<f32x16>(kept_where16 + 16);
            const f32x16 n6 = n4 - n5;
            const f32x16 n7 = exponential(n6);
            st(s1_exp19 + 16, n7);
            a_segmentreduce24_0 = sel(live, a_segmentreduce24_0 + n3, a_segmentreduce24_0);
            a_segmentreduce24_1 = sel(live, a_segmentreduce24_1 + n7, a_segmentreduce24_1);
            for (i32 k = 0; k < n; ++k) {
              const i64 e = e0 + k;
              const char* const next0 = (const char*)(t0 + (i64)map0[e + ahead] * 40 + 0);
              __builtin_prefetch(next0 + 0);
              __builtin_prefetch(next0 + 64);
              __builtin_prefetch(next0 + 128);
              const f32* w1_0 = t0 + (i64)map0[e] * 40;
              const f32x16 w1_1 = ld<f32x16>(w1_0 + 0);
              const f32x16 w1_2 = bc<f32x16>(s1_exp19[0 * 16 + k]);
              a_segmentreduce23_0 = fma(w1_1, w1_2, a_segmentreduce23_0);
              const f32x16 w1_3 = ld<f32x16>(w1_0 + 4);
              a_segmentreduce23_1 = fma(w1_3, w1_2, a_segmentreduce23_1);
              const f32x16 w1_4 = ld<f32x16>(w1_0 + 20);
              const f32x16 w1_5 = bc<f32x16>(s1_exp19[1 * 16 + k]);
              a_segmentreduce23_2 = fma(w1_4, w1_5, a_segmentreduce23_2);
              const f32x16 w1_6 = ld<f32x16>(w1_0 + 24);
              a_segmentreduce23_3 = fma(w1_6, w1_5, a_segmentreduce23_3);
            }
          }
          row_segmentreduce24[0] = fold<Sum>(a_segmentreduce24_0);
          row_segmentreduce24[1] = fold<Sum>(a_segmentreduce24_1);
          st(row_segmentreduce23 + 0, a_segmentreduce23_0);
          st(row_segmentreduce23 + 4, a_segmentreduce23_1);
          st(row_segmentreduce23 + 20, a_segmentreduce23_2);
          st(row_segmentreduce23 + 24, a_segmentreduce23_3);
        }
        {
          const f32x2 v0 = ld<f32x2>(row_segmentreduce24 + 0);
          const f32x2 v1 = bc<f32x2>(1.00000002e-16f);
          const f32x2 v2 = v0 + v1;
          st(out2_row + 0, v2);
        }
        {
          const f32x16 v0 = bc<f32x16>((f32)(end - begin));
          const f32x16 v1 = bc<f32x16>(0.0f);
          const i32x16 v2 = to_bool(v0 > v1);
          const f32x16 v3 = ld<f32x16>(row_segmentreduce23 + 0);
          const f32x16 v4 = bc<f32x16>(out2_row[0]);
          const f32x16 v5 = v3 / v4;
          const f32x16 v6 = sel(v2, v5, v3);
          const f32x16 v7 = ld<f32x16>(row_segmentreduce23 + 4);
          const f32x16 v8 = v7 / v4;
          const f32x16 v9 = sel(v2, v8, v7);
          const f32x16 v10 = ld<f32x16>(row_segmentreduce23 + 20);
          const f32x16 v11 = bc<f32x16>(out2_row[1]);
          const f32x16 v12 = v10 / v11;
          const f32x16 v13 = sel(v2, v12, v10);
          const f32x16 v14 = ld<f32x16>(row_segmentreduce23 + 24);
          const f32x16 v15 = v14 / v11;
          const f32x16 v16 = sel(v2, v15, v14);
          st(out0_row + 0, v6);
          st(out0_row + 4, v9);
          st(out0_row + 20, v13);
          st(out0_row + 24, v16);
        }
      }
    }
  }
}
