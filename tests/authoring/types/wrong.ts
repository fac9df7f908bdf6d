// What tsc must refuse: the line below each mark, and no other.
import { Handler, Input, Min, TestValue, type Context } from 'flowmonkey';
@Handler()
export class Wrong {
  // @ts-expect-error a string field cannot hold a number
  @Input({ type: 'integer' }) width!: string;
  // @ts-expect-error may be missing
  @Input({ type: 'integer', required: false }) height!: number;
  // @ts-expect-error may be null
  @Input({ type: 'integer', nullable: true }) depth!: number;
  // @ts-expect-error Min is for numbers
  @Input({ type: 'string' }) @Min(3) name!: string;
  // @ts-expect-error no such option
  @Input({ type: 'string', minimum: 3 }) other!: string;
  // @ts-expect-error not a string
  @Input({ type: 'string' }) @TestValue(3) third!: string;
  // @ts-expect-error items
  @Input({ type: 'array', items: 'string' }) list!: number[];
  execute(ctx: Context) { ctx.log.info('x'); return this.width; }
}
// @ts-expect-error no execute
@Handler() export class Empty {}
export function wrong(ctx: Context) {
  // @ts-expect-error read only
  ctx.config = {};
  // @ts-expect-error an object and not a plain text
  ctx.log.info('x', 'y');
  // @ts-expect-error an answer cannot be made up
  const answer: ReturnType<Context['wait']> = { outcome: 'success' };
  // @ts-expect-error no such source
  Input({ source: 'env' });
  return answer;
}
