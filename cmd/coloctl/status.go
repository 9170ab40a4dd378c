package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/internal/both"
	"github.com/coloctl/coloctl/internal/lab"
)

func statusCommand(r rules) *cli.Command {
	return r.remote(&cli.Command{Name: "status", Usage: "am I protected right now, and if not, why? Both halves of a VM, or of all", Flags: []cli.Flag{
		&cli.BoolFlag{Name: "watch", Aliases: []string{"w"}, Usage: "go on until interrupted"},
		&cli.DurationFlag{Name: "interval", Value: time.Second, Usage: "how often to look again with --watch"},
	}, Action: withSite(status)}, operands{max: 1, usage: "[VM]"})
}

// vmReport is a VM as both nodes see it.
type vmReport struct {
	VM        string         `json:"vm"`
	Protected bool           `json:"protected"`
	Reason    string         `json:"reason,omitempty"`
	NICs      []colo.NICSpec `json:"nics,omitempty"`
	Halves    []half         `json:"halves"`
	Rate      float64        `json:"checkpoints_per_second,omitempty"`
}

// nodeReport is a node as it sees itself, or why it did not answer.
type nodeReport struct {
	Node   string          `json:"node"`
	Status *api.NodeStatus `json:"status,omitempty"`
	Error  string          `json:"error,omitempty"`
	// Arbiter is how the node last found it; nil if it doesn't say.
	Arbiter *api.HealthItem `json:"arbiter,omitempty"`
}

// report is what status prints.
type report struct {
	Time  time.Time    `json:"time"`
	VMs   []vmReport   `json:"vms"`
	Nodes []nodeReport `json:"nodes"`
}

// errNotProtected makes the exit code of a status that is not good. What it would say was printed.
var errNotProtected = errors.New("not protected")

func status(cc *cli.Context, s *site) error {
	if cc.Duration("interval") < 100*time.Millisecond {
		return usagef("--interval %s: expected 100ms or more", cc.Duration("interval"))
	}
	if !cc.Bool("watch") {
		rep, err := s.report(cc.Context, cc.Args().First(), nil)
		if err != nil {
			return attempt(err, "status of", cc.Args().First(), nil)
		}
		if err := printReport(cc, rep); err != nil {
			return err
		}
		return rep.err()
	}
	return watchStatus(cc, s)
}

func (r *report) err() error {
	for _, v := range r.VMs {
		if !v.Protected {
			return errNotProtected
		}
	}
	return nil
}

func printReport(cc *cli.Context, rep *report) error {
	if f := format(cc); f != lab.FormatTable {
		return lab.Encode(cc.App.Writer, f, rep)
	}
	_, err := io.WriteString(cc.App.Writer, screen(rep))
	return err
}

// watchStatus shows the status anew until it is interrupted. On a terminal it stays on one screen.
func watchStatus(cc *cli.Context, s *site) error {
	tick := time.NewTicker(cc.Duration("interval"))
	defer tick.Stop()
	out, onScreen := cc.App.Writer, isTerminal(cc.App.Writer) && format(cc) == lab.FormatTable
	if onScreen {
		fmt.Fprint(out, "\x1b[?25l\x1b[2J") // without a cursor
		defer fmt.Fprint(out, "\x1b[?25h\n")
	}
	var last *report
	for {
		rep, err := s.report(cc.Context, cc.Args().First(), last)
		switch {
		case cc.Err() != nil:
			return context.Cause(cc.Context)
		case err != nil && last == nil:
			return attempt(err, "status of", cc.Args().First(), nil)
		case err != nil && onScreen:
			repaint(out, fmt.Sprintf("no answer: %v\n\nlast seen %s ago:\n\n%s", err, short(time.Since(last.Time)), screen(last)))
		case err != nil:
			fmt.Fprintf(cc.App.ErrWriter, "coloctl: %v\n", err)
		case onScreen:
			repaint(out, screen(rep))
			last = rep
		default:
			if err := printReport(cc, rep); err != nil {
				return err
			}
			if format(cc) == lab.FormatTable {
				fmt.Fprintln(out)
			}
			last = rep
		}
		select {
		case <-tick.C:
		case <-cc.Done():
			return context.Cause(cc.Context)
		}
	}
}

// repaint writes over the last screen, as far as the terminal reaches.
func repaint(w io.Writer, text string) {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if f, ok := w.(*os.File); ok {
		if _, height, err := term.GetSize(int(f.Fd())); err == nil && len(lines) > height-1 {
			lines = append(lines[:max(height-2, 0)], "...")
		}
	}
	fmt.Fprint(w, "\x1b[H"+strings.Join(lines, "\x1b[K\n")+"\x1b[K\n\x1b[J")
}

// report asks all nodes about one VM, or about all. last is the report before, for rates.
func (s *site) report(ctx context.Context, vm string, last *report) (*report, error) {
	rep := &report{Time: time.Now(), VMs: []vmReport{}, Nodes: make([]nodeReport, len(s.Nodes))}
	names := make([][]string, len(s.Nodes))
	errs := s.Each(func(i int, t *target) error {
		n, err := t.Node(ctx)
		if err != nil {
			rep.Nodes[i] = nodeReport{Node: t.String(), Error: err.Error()}
			return err
		}
		rep.Nodes[i], names[i] = nodeReport{Node: n.Info.Name, Status: &n}, n.VMs
		if h, err := t.Health(ctx); err == nil { // without it the VMs' verdicts say something of the arbiter
			if j := slices.IndexFunc(h.Items, func(i api.HealthItem) bool { return i.Name == "arbiter" }); j >= 0 {
				rep.Nodes[i].Arbiter = &h.Items[j]
			}
		}
		return nil
	})
	if err := s.AllFailed(errs); err != nil {
		return nil, err
	}
	all := []string{vm}
	if vm == "" {
		all = slices.Compact(slices.Sorted(slices.Values(slices.Concat(names...))))
	}
	for _, name := range all {
		v, err := s.reportVM(ctx, name, last)
		if errors.Is(err, colo.ErrNoVM) && vm == "" {
			continue // deleted in this moment
		}
		if err != nil {
			return nil, err
		}
		rep.VMs = append(rep.VMs, *v)
	}
	return rep, nil
}

func (s *site) reportVM(ctx context.Context, vm string, last *report) (*vmReport, error) {
	halves, err := s.Look(ctx, vm)
	if err != nil {
		return nil, err
	}
	verdict := both.Judge(halves)
	v := &vmReport{VM: vm, Protected: verdict.Protected, Reason: verdict.Reason, Halves: halves}
	for _, h := range halves {
		if h.Target == nil || !h.Has() {
			continue
		}
		if full, err := h.Target.VM(ctx, vm); err == nil && full.Spec != nil {
			v.NICs = full.Spec.NICs
			break
		}
	}
	var before *vmReport
	if last != nil {
		if i := slices.IndexFunc(last.VMs, func(o vmReport) bool { return o.VM == vm }); i >= 0 {
			before = &last.VMs[i]
		}
	}
	v.Rate = checkpointRate(v, before)
	return v, nil
}

// primary is the half where checkpoints are made.
func (v *vmReport) primary() *colo.Status {
	// The engine keeps the figures of the last COLO.
	for _, state := range []colo.State{colo.Protected, colo.Attaching, colo.Secondary} {
		for _, h := range v.Halves {
			if h.Has() && h.Status.State == state && h.Status.Checkpoints.Count > 0 {
				return h.Status
			}
		}
	}
	return nil
}

// checkpointRate is the number of checkpoints a second: since the report before, or else since the VM is protected. All times are of the node's
// clock, which may differ from ours.
func checkpointRate(now, before *vmReport) float64 {
	s := now.primary()
	if s == nil {
		return 0
	}
	if before != nil {
		if b := before.primary(); b != nil && b.Node == s.Node && s.Checkpoints.Count > b.Checkpoints.Count {
			return rate(s.Checkpoints.Count-b.Checkpoints.Count, s.Checkpoints.Last.Sub(b.Checkpoints.Last))
		}
	}
	return rate(s.Checkpoints.Count, s.Checkpoints.Last.Sub(s.Since))
}

func rate(n uint64, in time.Duration) float64 {
	if in < 50*time.Millisecond {
		return 0
	}
	return float64(n) / in.Seconds()
}
