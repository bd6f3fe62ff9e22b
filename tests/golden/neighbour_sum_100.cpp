// edge program neighbour_sum_100
// program neighbour_sum_100 ordered maps(src)
//   input x : at(src)[100] float32
//   %0 : edge[100] float32 = load_at x
//   %1 : row[100] float32 = segment_reduce(reduce=sum, init=0.0) %0
//   output out = %1
// schedule
//   rows in parallel, tasks of about 4096 edges and rows, the same tasks for any number of threads
//   pass 0: one stream over the row
//     wide, lanes are elements: segment out0
extern "C" void neighbour_sum_100(void* const* args, i64 num_rows, i64 num_edges, i32 threads) {
  const f32* __restrict const t0 = (const f32*)args[0];  // x
  f32* __restrict const out0 = (f32*)args[1];  // out
  const i64* __restrict const indptr = (const i64*)args[2];
  const index_t* __restrict const map0 = (const index_t*)args[4];  // src
  const i64 tasks = clamp((num_rows + num_edges) / 4096, 1, 1 << 20);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic, 1)
    for (i64 task = 0; task < tasks; ++task) {
      const i64 row_end = first_row(indptr, num_rows, num_edges, task + 1, tasks);
      for (i64 row = first_row(indptr, num_rows, num_edges, task, tasks); row < row_end; ++row) {
        const i64 begin = indptr[row], end = indptr[row + 1];
        f32* const out0_row = out0 + row * 100;
        {
          const i64 ahead = smaller(9, num_edges - end);
          f32x16 a_out0_0 = bc<f32x16>(0.0f);
          f32x16 a_out0_1 = bc<f32x16>(0.0f);
          f32x16 a_out0_2 = bc<f32x16>(0.0f);
          f32x16 a_out0_3 = bc<f32x16>(0.0f);
          f32x16 a_out0_4 = bc<f32x16>(0.0f);
          f32x16 a_out0_5 = bc<f32x16>(0.0f);
          f32x16 a_out0_6 = bc<f32x16>(0.0f);
          for (i64 e = begin; e < end; ++e) {
            const char* const next0 = (const char*)(t0 + (i64)map0[e + ahead] * 100 + 0);
            __builtin_prefetch(next0 + 0);
            __builtin_prefetch(next0 + 64);
            __builtin_prefetch(next0 + 128);
            __builtin_prefetch(next0 + 192);
            __builtin_prefetch(next0 + 256);
            __builtin_prefetch(next0 + 320);
            __builtin_prefetch(next0 + 384);
            const f32* v0 = t0 + (i64)map0[e] * 100;
            const f32x16 v1 = ld<f32x16>(v0 + 0);
            a_out0_0 = a_out0_0 + v1;
            const f32x16 v2 = ld<f32x16>(v0 + 16);
            a_out0_1 = a_out0_1 + v2;
            const f32x16 v3 = ld<f32x16>(v0 + 32);
            a_out0_2 = a_out0_2 + v3;
            const f32x16 v4 = ld<f32x16>(v0 + 48);
            a_out0_3 = a_out0_3 + v4;
            const f32x16 v5 = ld<f32x16>(v0 + 64);
            a_out0_4 = a_out0_4 + v5;
            const f32x16 v6 = ld<f32x16>(v0 + 80);
            a_out0_5 = a_out0_5 + v6;
            const f32x16 v7 = ld<f32x16>(v0 + 84);
            a_out0_6 = a_out0_6 + v7;
          }
          st(out0_row + 0, a_out0_0);
          st(out0_row + 16, a_out0_1);
          st(out0_row + 32, a_out0_2);
          st(out0_row + 48, a_out0_3);
          st(out0_row + 64, a_out0_4);
          st(out0_row + 80, a_out0_5);
          st(out0_row + 84, a_out0_6);
        }
      }
    }
  }
}
