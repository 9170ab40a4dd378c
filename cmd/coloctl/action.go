package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/internal/both"
	"github.com/coloctl/coloctl/internal/lab"
)

// action is a request that leads to an operation.
type action struct {
	kind string // as the API names it
	// body makes the request's body from the flags.
	body func(cc *cli.Context, vm string) (any, error)
	do   func(ctx context.Context, t *target, vm string, body any) (api.Operation, error)
	// ask is the question to a person; %s is the VM. Empty asks nothing.
	ask string
	// named says that the VM's name must be typed instead of a yes.
	named bool
}

// actionFlags are those of actions that have none of their own.
func plainBody(cc *cli.Context, _ string) (any, error) {
	return api.Request{Reason: cc.String("reason")}, nil
}

func resyncBody(cc *cli.Context, _ string) (any, error) {
	mode := blockrepl.Mode(cc.String("mode"))
	switch mode {
	case "", blockrepl.Bitmap, blockrepl.Checksum, blockrepl.Full:
	default:
		return nil, usagef("--mode %s: expected %s, %s or %s", mode, blockrepl.Bitmap, blockrepl.Checksum, blockrepl.Full)
	}
	return api.ResyncRequest{Request: api.Request{Reason: cc.String("reason")}, Mode: mode, Node: cc.String("by")}, nil
}

func modeFlag() cli.Flag {
	return &cli.StringFlag{Name: "mode", Usage: "copy what is on record (bitmap), what differs (checksum) or all (full); what is safe and quickest if left out"}
}

// protectionCommands are the verbs about the redundancy of a VM.
func protectionCommands(r rules) []*cli.Command {
	vm := operands{min: 1, max: 1, usage: "VM"}
	return []*cli.Command{
		r.operation(&cli.Command{Name: "protect", Usage: "make a VM redundant", Flags: []cli.Flag{modeFlag(),
			&cli.StringFlag{Name: "by", Usage: "protect it by this `NODE`, one of its candidates, instead of its last other node"}}, Action: withSite(action{
			kind: "protect", body: resyncBody,
			do: func(ctx context.Context, t *target, vm string, body any) (api.Operation, error) {
				return t.Protect(ctx, vm, body.(api.ResyncRequest))
			},
		}.run)}, vm),
		r.operation(&cli.Command{Name: "unprotect", Usage: "let a VM run alone", Action: withSite(action{
			kind: "unprotect", body: plainBody, ask: "Let %s run without a second copy?",
			do: func(ctx context.Context, t *target, vm string, body any) (api.Operation, error) {
				return t.Unprotect(ctx, vm, body.(api.Request))
			},
		}.run)}, vm),
		r.operation(&cli.Command{Name: "switchover", Usage: "let a protected VM go on on its other node, without a loss", Action: withSite(action{
			kind: "switchover", body: plainBody, ask: "Let %s go on on its other node?",
			do: func(ctx context.Context, t *target, vm string, body any) (api.Operation, error) {
				return t.Switchover(ctx, vm, body.(api.Request))
			},
		}.run)}, vm),
		r.operation(&cli.Command{Name: "failover", Usage: "let the copy that waits for the arbiter's word go on without it", Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Usage: "vouch that the other copy is dead: if it is not, two copies of the VM speak from now on"},
			lossFlag("go on even if the arbiter has let the other copy go on"),
		}, Action: withSite(action{
			kind: "failover", body: failoverBody, named: true,
			ask: "If the other copy of %s is not dead, two copies of it speak from now on,\nand what one of them writes is lost.",
			do: func(ctx context.Context, t *target, vm string, body any) (api.Operation, error) {
				return t.Failover(ctx, vm, body.(api.FailoverRequest))
			},
		}.run)}, vm),
		r.operation(&cli.Command{Name: "resync", Usage: "make the other node's disks equal again, and protect the VM; or change a resync that runs",
			Flags: append([]cli.Flag{modeFlag()}, tuneFlags()...), Action: withSite(resync)}, vm),
	}
}

func failoverBody(cc *cli.Context, vm string) (any, error) {
	if !cc.Bool("force") {
		return nil, usagef("after a loss the nodes fail over by themselves; for a planned change of roles: coloctl switchover %s; "+
			"to vouch that the other copy is dead: coloctl failover --force %s", vm, vm)
	}
	return api.FailoverRequest{Request: api.Request{Reason: cc.String("reason")}, Force: true, Confirm: vm, AcceptDataLoss: cc.Bool(acceptLoss)}, nil
}

// acceptLoss is the flag with which a person lets a copy go on that is not known to be current.
const acceptLoss = "accept-data-loss"

func lossFlag(usage string) cli.Flag {
	return &cli.BoolFlag{Name: acceptLoss, Usage: usage + ": what clients have seen since then is lost"}
}

func startBody(cc *cli.Context, vm string) (any, error) {
	return api.StartRequest{Request: api.Request{Reason: cc.String("reason")}, AcceptDataLoss: cc.Bool(acceptLoss), Confirm: vm}, nil
}

// question is what a person is asked, and whether the VM's name must be typed. Empty asks nothing.
func (a action) question(cc *cli.Context) (ask string, named bool) {
	if cc.Bool(acceptLoss) && !a.named {
		return "The copy of %s here may be old or incomplete: what clients have seen since it was current is lost,\nand if its other copy is not dead, two copies speak from now on.", true
	}
	return a.ask, a.named
}

// run carries a command through: route, preview or confirmation, request, waiting.
func (a action) run(cc *cli.Context, s *site) error {
	ctx, vm := cc.Context, cc.Args().First()
	body, err := a.body(cc, vm)
	if err != nil {
		return err
	}
	t, halves, err := s.Route(ctx, vm)
	if err != nil {
		return attempt(err, a.kind, vm, t)
	}
	if cc.Bool("dry-run") {
		return attempt(a.preview(cc, t, vm, body), a.kind+" (dry run)", vm, t)
	}
	if ask, named := a.question(cc); ask != "" && !cc.Bool("yes") {
		if _, err := t.DryRun(ctx, vm, a.kind, body); err != nil { // nobody is asked about what is refused anyway
			return silence(attempt(err, a.kind, vm, t), vm, halves)
		}
		word := ""
		if named {
			word = vm
		}
		if err := confirm(cc, word, "%s\n%s", verdictLine(vm, both.Judge(halves)), fmt.Sprintf(ask, vm)); err != nil {
			return err
		}
	}
	op, err := a.do(ctx, t, vm, body)
	if err != nil {
		return silence(attempt(err, a.kind, vm, t), vm, halves)
	}
	return silence(follow(cc, t, op), vm, halves)
}

// silence adds to a refusal what may be its reason when a node did not say how it stands there.
func silence(err error, vm string, halves []half) error {
	if missing := both.Silent(halves); len(missing) > 0 && errors.As(err, new(*colo.UnexpectedEventError)) {
		return &taskError{"", fmt.Errorf("%w; %s, which may run it, does not answer", err, strings.Join(missing, ", ")), "see: coloctl status " + vm}
	}
	return err
}

func (a action) preview(cc *cli.Context, t *target, vm string, body any) error {
	dry, err := t.DryRun(cc.Context, vm, a.kind, body)
	if err != nil {
		return err
	}
	if f := format(cc); f != lab.FormatTable {
		return lab.Encode(cc.App.Writer, f, dry)
	}
	if len(dry.Previews) == 0 { // it has no plan of the VM's
		_, err := fmt.Fprintf(cc.App.Writer, "%s on %s: %s: nothing speaks against it\n", vm, t, a.kind)
		return err
	}
	for _, p := range dry.Previews {
		if len(p.Steps) == 0 {
			fmt.Fprintf(cc.App.Writer, "%s on %s: nothing would be done: it is %s", p.VM, p.Node, p.From)
			if p.Why != "" {
				fmt.Fprintf(cc.App.Writer, " (%s)", p.Why)
			}
			fmt.Fprintln(cc.App.Writer)
			continue
		}
		what := string(p.Plan)
		if what == "" { // a plan that runs is taken back
			what = string(p.Event)
		}
		fmt.Fprintf(cc.App.Writer, "%s on %s: %s, from %s to %s\n", p.VM, p.Node, what, p.From, p.To)
		for i, step := range p.Steps {
			fmt.Fprintf(cc.App.Writer, "%3d  %s\n", i+1, step)
		}
	}
	return nil
}

// follow waits for an operation, unless told not to, and says how far it is; then it prints what came of it.
func follow(cc *cli.Context, t *target, op api.Operation) error {
	task := fmt.Sprintf("%s %s on %s", op.Kind, op.VM, t)
	if !waits(cc) && cc.Command.Name != "wait" {
		if f := format(cc); f != lab.FormatTable {
			return lab.Encode(cc.App.Writer, f, op)
		}
		fmt.Fprintf(cc.App.ErrWriter, "%s goes on; to wait for it: coloctl wait %s\n", task, op.ID)
		_, err := fmt.Fprintln(cc.App.Writer, op.ID)
		return err
	}
	say := newReporter(cc)
	last, err := t.Wait(cc.Context, op.ID, say.operation)
	say.end()
	if last.ID == "" {
		last = op
	}
	if cc.Err() != nil {
		return &taskError{task, err, "it goes on; to wait for it: coloctl wait " + op.ID}
	}
	if last.State == api.Running { // the daemon has gone
		return &taskError{task, err, "see what became of it: coloctl status " + op.VM}
	}
	if f := format(cc); f != lab.FormatTable {
		if perr := lab.Encode(cc.App.Writer, f, last); perr != nil {
			return perr
		}
	} else if err == nil {
		fmt.Fprintf(cc.App.Writer, "%s: %s in %s\n", task, last.State, short(last.Ended.Sub(last.Begun)))
	}
	if err != nil && last.State == api.Cancelled {
		return &taskError{task, fmt.Errorf("cancelled: %w", err), ""}
	}
	if err != nil {
		return &taskError{task: task, err: err}
	}
	return nil
}

// reporter tells on stderr how far an operation is: each step in a line, and progress, on a terminal in the last line, elsewhere now and then.
type reporter struct {
	w     io.Writer
	live  bool
	steps int
	told  time.Time
}

// tellPause is between two lines of progress where they can't be written over.
const tellPause = 15 * time.Second

func newReporter(cc *cli.Context) *reporter {
	return &reporter{w: cc.App.ErrWriter, live: isTerminal(cc.App.ErrWriter), told: time.Now()}
}

func (r *reporter) operation(op api.Operation) {
	for ; r.steps < len(op.Steps); r.steps++ {
		s := op.Steps[r.steps]
		r.end()
		fmt.Fprintf(r.w, "%7.1f s  %s %d/%d: %s\n", s.Begun.Sub(op.Begun).Seconds(), s.Plan, s.Index+1, s.Of, s.Name)
	}
	p := op.Progress
	switch {
	case p == nil || p.Total <= 0 || op.State != api.Running:
	case r.live:
		r.end()
		fmt.Fprint(r.w, fit(progressText(p, 12), screenWidth-1))
	case time.Since(r.told) >= tellPause:
		r.told = time.Now()
		fmt.Fprintf(r.w, "           %s\n", progressText(p, 12))
	}
}

// end takes the last line's progress away.
func (r *reporter) end() {
	if r.live {
		fmt.Fprint(r.w, "\r\x1b[K")
	}
}

// progressText is how far something is, in one line.
func progressText(p *colo.Progress, width int) string {
	text := fmt.Sprintf("%s %s %s of %s", p.What, bar(p.Done, p.Total, width), bytesText(p.Done), bytesText(p.Total))
	if p.Paused {
		return text + ", paused"
	}
	if p.Rate > 0 {
		text += ", " + bytesText(p.Rate) + "/s"
	}
	if p.ETA > 0 {
		text += ", " + short(p.ETA.Round(time.Second)) + " left"
	}
	if p.Limit > 0 {
		text += ", limit " + bytesText(p.Limit) + "/s"
	}
	return text
}

// verdictLine is the answer to "am I protected right now?".
func verdictLine(vm string, v colo.Verdict) string {
	if v.Protected {
		return vm + ": PROTECTED"
	}
	return vm + ": NOT PROTECTED: " + v.Reason
}
