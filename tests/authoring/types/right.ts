// What tsc must take, with standard and with legacy decorators; never run.
import { Handler, Input, Min, Max, MinLength, Pattern, Email, Enum, TestValue, env, type Context, type HandlerFunction } from 'flowmonkey';
import { handlerTest } from 'flowmonkey/testing';
@Handler({ output: { type: 'object' } })
export class Resize {
  @Input({ type: 'integer', description: 'w' }) @Min(1) @Max(4000) @TestValue(800)
  width!: number;
  @Input({ type: 'string', enum: ['png', 'webp'], default: 'png' }) format!: 'png' | 'webp';
  @Input({ type: 'array', items: 'string', required: false }) @MinLength(1) tags?: string[];
  @Input({ type: 'object', nullable: true }) box!: { a: number } | null;
  @Input({ source: 'vault' }) @TestValue(env('API_KEY')) @Pattern(/^sk-/u) apiKey!: string;
  @Input({ type: 'string' }) @Email() mail!: string;
  @Input() any!: Map<string, number>;
  @Enum('a', 'b') @Input({ type: 'string' }) ab!: string;
  async execute(ctx: Context) {
    ctx.log.info('working', { size: 3 });
    if (this.width > 3) return ctx.failure('TOO_BIG', 'no', { retryable: false });
    return { width: this.width };
  }
}
export const handle: HandlerFunction<{ a: number }> = async (input, ctx) => ({ b: input.a, c: ctx.attempt });
export const tested = handlerTest<{ width: number }>({}).then((t) => t.output?.width);

// JavaScript's way, which types check too.
export const Plain = Handler({ inputs: { a: { type: 'string', maxLength: 3 } } })(
  class {
    declare a: string;
    execute(ctx: Context) {
      return ctx.wait({ until: new Date(0), event: 'x', filter: { a: 1 }, reason: this.a });
    }
  },
);
