// Transcodes a clip chunk by chunk. Each chunk is a checkpoint: a container that dies costs the
// chunk it was at. Then it pauses, for free, until the subtitles are uploaded, and joins all.
// The same input makes the same bytes, whatever happened on the way.

import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';

const RATE = 25; // frames a second
const SAME_BYTES = ['-fflags', '+bitexact', '-flags', '+bitexact', '-map_metadata', '-1'];

export async function handle({ clip, seconds, width }, ctx) {
  const state = (await ctx.checkpoint.load()) ?? { chunks: 0, subtitles: null };
  if (state.chunks < seconds) await receive(seconds, width);
  while (state.chunks < seconds) {
    if (ctx.cancelled) return ctx.failure('CANCELLED', 'told to stop');
    const number = state.chunks;
    const chunk = await transcode(number);
    await ctx.checkpoint.save(chunk, `chunk-${number}`);
    state.chunks = number + 1;
    await ctx.checkpoint.save(state);
    ctx.log.info(`transcoded chunk ${number}`, { sizeBytes: chunk.length });
    ctx.progress((90 * state.chunks) / seconds, `chunk ${state.chunks} of ${seconds}`);
  }
  if (state.subtitles === null) {
    const upload = await ctx.pause.wait('for the subtitles', {
      event: 'upload.complete',
      filter: { clip },
      maxWaitMs: 3_600_000,
      checkpoint: state,
    });
    if (upload === null) return ctx.failure('NO_SUBTITLES', 'nobody uploaded them within an hour');
    state.subtitles = upload.subtitles;
    await ctx.checkpoint.save(state); // from here on a new container does not ask again
  }
  ctx.progress(95, 'joining');
  const film = await join(seconds, state.subtitles, ctx);
  await ctx.checkpoint.save(film, 'result');
  ctx.progress(100, 'done');
  return {
    clip,
    chunks: seconds,
    frames: await frames(),
    sizeBytes: film.length,
    sha256: createHash('sha256').update(film).digest('hex'),
  };
}

/** The clip into /tmp; it stands for a download, so a new container has to do it again. */
async function receive(seconds, width) {
  const size = `${width}x${(width * 9) / 16}`;
  const picture = `testsrc2=size=${size}:rate=${RATE}:duration=${seconds}`;
  // A key frame for each second, so that every chunk can be decoded by itself.
  const encoded = ['-c:v', 'mpeg4', '-q:v', '2', '-g', `${RATE}`, '-bf', '0'];
  await ffmpeg('-f', 'lavfi', '-i', picture, ...encoded, ...SAME_BYTES, '/tmp/clip.mkv');
}

/** One second of the clip as H.264 in an MPEG transport stream. */
async function transcode(number) {
  const encoded = ['-c:v', 'libx264', '-preset', 'medium', '-crf', '26', '-pix_fmt', 'yuv420p'];
  const place = ['-ss', `${number}`, '-t', '1', '-i', '/tmp/clip.mkv'];
  await ffmpeg(...place, ...encoded, '-threads', '1', ...SAME_BYTES, '-f', 'mpegts', '/tmp/chunk.ts');
  return readFile('/tmp/chunk.ts');
}

/** All chunks and the subtitles as one film, which stays in /tmp/film.mp4. */
async function join(seconds, subtitles, ctx) {
  const list = [];
  for (let number = 0; number < seconds; number += 1) {
    await writeFile(`/tmp/${number}.ts`, await ctx.checkpoint.load(`chunk-${number}`));
    list.push(`file ${number}.ts\nduration 1\n`);
  }
  await writeFile('/tmp/list.txt', list.join(''));
  await writeFile('/tmp/film.srt', subtitles);
  const inputs = ['-f', 'concat', '-i', '/tmp/list.txt', '-i', '/tmp/film.srt'];
  const kept = ['-map', '0:v', '-map', '1:s', '-c:v', 'copy', '-c:s', 'mov_text'];
  await ffmpeg(...inputs, ...kept, ...SAME_BYTES, '-movflags', '+faststart', '/tmp/film.mp4');
  return readFile('/tmp/film.mp4');
}

async function frames() {
  const counted = ['-select_streams', 'v', '-count_packets', '-show_entries', 'stream=nb_read_packets'];
  return Number(await run('ffprobe', '-v', 'error', ...counted, '-of', 'csv=p=0', '/tmp/film.mp4'));
}

const ffmpeg = (...words) => run('ffmpeg', '-v', 'error', '-nostdin', '-y', ...words);

function run(program, ...words) {
  return new Promise((resolve, reject) => {
    const child = spawn(program, words, { stdio: ['ignore', 'pipe', 'pipe'] });
    let out = '';
    let said = '';
    child.stdout.on('data', (data) => (out += data));
    child.stderr.on('data', (data) => (said += data));
    child.on('error', reject);
    child.on('close', (code, signal) =>
      code === 0 ? resolve(out) : reject(new Error(`${program}: ${signal ?? code}: ${said.slice(-500)}`)),
    );
  });
}
