package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/internal/both"
	"github.com/coloctl/coloctl/internal/lab"
)

func vmCommand(r rules) *cli.Command {
	vm := operands{min: 1, max: 1, usage: "VM"}
	return group(&cli.Command{Name: "vm", Usage: "make, start, stop, change and delete VMs", Subcommands: append([]*cli.Command{
		r.change(&cli.Command{Name: "create", Usage: "make a VM from its spec; it is not started", Flags: []cli.Flag{specFlag()},
			Action: withSite(vmCreate)}, operands{}),
		r.change(&cli.Command{Name: "import", Usage: "make a spec, or a VM, of a domain of libvirt's", Flags: importFlags(), Action: vmImport}, operands{}),
		r.remote(&cli.Command{Name: "list", Usage: "list the VMs", Action: withSite(vmList)}, operands{}),
		r.remote(&cli.Command{Name: "show", Usage: "show a VM's spec", Action: withSite(vmShow)}, vm),
		r.operation(&cli.Command{Name: "start", Usage: "start a VM", Flags: []cli.Flag{lossFlag("start it though its disks here may be old or are incomplete")}, Action: withSite(action{
			kind: "start", body: startBody,
			do: func(ctx context.Context, t *target, vm string, body any) (api.Operation, error) {
				return t.StartWith(ctx, vm, body.(api.StartRequest))
			},
		}.run)}, vm),
		r.operation(&cli.Command{Name: "stop", Usage: "shut a VM down", Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Usage: "end it at once instead of asking the guest to shut down"},
			&cli.DurationFlag{Name: "grace", Usage: "how long the guest may take to shut down (0: a minute)", DefaultText: "0"},
		}, Action: withSite(action{
			kind: "stop", body: stopBody, ask: "Stop %s?",
			do: func(ctx context.Context, t *target, vm string, body any) (api.Operation, error) {
				return t.Stop(ctx, vm, body.(api.StopRequest))
			},
		}.run)}, vm),
		r.operation(&cli.Command{Name: "checkpoint", Usage: "make both copies of a protected VM equal now", Action: withSite(action{
			kind: "checkpoint", body: plainBody,
			do: func(ctx context.Context, t *target, vm string, body any) (api.Operation, error) {
				return t.Checkpoint(ctx, vm, body.(api.Request))
			},
		}.run)}, vm),
		r.operation(&cli.Command{Name: "restore-record", Usage: "give an arbiter that has lost its memory, or a new one, the record of a VM", Action: withSite(action{
			kind: "restore-record", body: plainBody, ask: "Give the arbiter the record of %s again?",
			do: func(ctx context.Context, t *target, vm string, body any) (api.Operation, error) {
				return t.RestoreRecord(ctx, vm, body.(api.Request))
			},
		}.run)}, vm),
		r.change(&cli.Command{Name: "delete", Usage: "forget a VM that does not run, on all nodes that are reached", Flags: []cli.Flag{
			&cli.BoolFlag{Name: "images", Usage: "delete its disk images too"},
		}, Action: withSite(vmDelete)}, vm),
		r.change(&cli.Command{Name: "edit", Usage: "change a VM's spec in an editor, or replace it by a file's", Flags: []cli.Flag{specFlag()},
			Action: withSite(vmEdit)}, vm),
	}, backupCommands(r)...)})
}

func specFlag() cli.Flag {
	return &cli.StringFlag{Name: "file", Aliases: []string{"f"}, Usage: "`FILE` with the spec in YAML; - reads standard input", TakesFile: true}
}

func stopBody(cc *cli.Context, _ string) (any, error) {
	grace := cc.Duration("grace")
	if grace < 0 {
		return nil, usagef("--grace %s: expected 0 or more", grace)
	}
	return api.StopRequest{Request: api.Request{Reason: cc.String("reason")}, Force: cc.Bool("force"), Timeout: grace.Seconds()}, nil
}

// readSpec reads the file that -f names, and checks it, so that what is plainly wrong needs no daemon to say so.
func readSpec(cc *cli.Context) (api.SpecText, *colo.Spec, error) {
	name := cc.String("file")
	var data []byte
	var err error
	if name == "-" {
		name = "standard input"
		data, err = io.ReadAll(cc.App.Reader)
	} else {
		data, err = os.ReadFile(name)
	}
	if err != nil {
		return api.SpecText{}, nil, &usageError{fmt.Errorf("-f: %w", err)}
	}
	spec, err := colo.ParseSpec(data, name)
	return api.SpecText{YAML: data, File: name}, spec, err
}

func vmCreate(cc *cli.Context, s *site) error {
	if !cc.IsSet("file") {
		return usagef("vm create: which spec? give -f FILE; there is one to begin with in examples/specs/web.yaml")
	}
	text, spec, err := readSpec(cc)
	if err != nil {
		return err
	}
	text.Reason = cc.String("reason")
	t := s.Nodes[0]
	if cc.Bool("dry-run") {
		if err := t.CheckCreate(cc.Context, text); err != nil {
			return attempt(err, "create (dry run)", spec.Name, t)
		}
		return tellSteps(cc, spec.Name, t, "create", createSteps(spec))
	}
	made, err := t.Create(cc.Context, text)
	if err != nil {
		return attempt(err, "create", spec.Name, t)
	}
	if f := format(cc); f != lab.FormatTable {
		return lab.Encode(cc.App.Writer, f, made)
	}
	fmt.Fprintf(cc.App.ErrWriter, "created on %s; to start it: coloctl vm start %s\n", made.Status.Node, spec.Name)
	_, err = fmt.Fprintln(cc.App.Writer, spec.Name)
	return err
}

func createSteps(spec *colo.Spec) []string {
	var out []string
	for _, d := range spec.Disks {
		if d.ReadOnly {
			continue
		}
		out = append(out, fmt.Sprintf("make the image %s (%s, %s) unless it is there", d.File, d.Format, d.Size))
	}
	return append(out, "store the VM")
}

// tellSteps prints what a command without a plan of the engine would do.
func tellSteps(cc *cli.Context, vm string, t *target, what string, steps []string) error {
	if f := format(cc); f != lab.FormatTable {
		return lab.Encode(cc.App.Writer, f, api.DryRun{Previews: []colo.Preview{{VM: vm, Node: t.String(), Event: colo.EventKind(what), Steps: steps}}})
	}
	fmt.Fprintf(cc.App.Writer, "%s on %s: %s\n", vm, t, what)
	for i, step := range steps {
		fmt.Fprintf(cc.App.Writer, "%3d  %s\n", i+1, step)
	}
	return nil
}

// vmEntry is a line of the list.
type vmEntry struct {
	VM        string `json:"vm"`
	Protected bool   `json:"protected"`
	Reason    string `json:"reason,omitempty"`
	Primary   string `json:"primary,omitempty"` // the node where it runs
	Halves    []half `json:"halves"`
}

func vmList(cc *cli.Context, s *site) error {
	names := make([][]string, len(s.Nodes))
	errs := s.Each(func(i int, t *target) error {
		n, err := t.Node(cc.Context)
		names[i] = n.VMs
		return err
	})
	if err := s.AllFailed(errs); err != nil {
		return attempt(err, "list the VMs", "", nil)
	}
	var unasked []string
	missing := func(node, why string) {
		if !slices.Contains(unasked, node) {
			unasked = append(unasked, node)
			fmt.Fprintf(cc.App.ErrWriter, "coloctl: what %s knows is missing here: %s\n", node, oneLine(why))
		}
	}
	for i, err := range errs {
		if err != nil {
			missing(s.Nodes[i].String(), err.Error())
		}
	}
	all := []vmEntry{}
	for _, vm := range slices.Compact(slices.Sorted(slices.Values(slices.Concat(names...)))) {
		halves, err := s.Look(cc.Context, vm)
		if errors.Is(err, colo.ErrNoVM) {
			continue // deleted in this moment
		}
		if err != nil {
			return attempt(err, "list", vm, nil)
		}
		v := both.Judge(halves)
		e := vmEntry{VM: vm, Protected: v.Protected, Reason: v.Reason, Halves: halves}
		for _, h := range halves {
			switch {
			case h.Has() && both.RunsAsPrimary(h.Status.State):
				e.Primary = h.Node
			case !h.Has() && !errors.Is(h.Err, colo.ErrNoVM): // also a peer that the only node could not ask
				missing(h.Node, h.Error)
			}
		}
		all = append(all, e)
	}
	if f := format(cc); f != lab.FormatTable {
		return lab.Encode(cc.App.Writer, f, all)
	}
	w := table(cc.App.Writer, "VM", "PROTECTED", "RUNS ON", "STATES", "WHY NOT")
	for _, e := range all {
		protected, where := "no", "-"
		if e.Protected {
			protected = "yes"
		}
		if e.Primary != "" {
			where = e.Primary
		}
		var states []string
		for _, h := range e.Halves {
			switch {
			case h.Has():
				states = append(states, h.Node+" "+string(h.Status.State))
			case !errors.Is(h.Err, colo.ErrNoVM):
				states = append(states, h.Node+" no answer")
			}
		}
		w.row(e.VM, protected, where, strings.Join(states, ", "), e.Reason)
	}
	return w.flush()
}

func vmShow(cc *cli.Context, s *site) error {
	vm := cc.Args().First()
	t, err := s.anyWith(cc.Context, vm)
	if err != nil {
		return attempt(err, "show", vm, t)
	}
	if format(cc) == lab.FormatTable {
		text, _, err := t.Spec(cc.Context, vm)
		if err != nil {
			return attempt(err, "show", vm, t)
		}
		_, err = cc.App.Writer.Write(text)
		return err
	}
	full, err := t.VM(cc.Context, vm)
	if err != nil {
		return attempt(err, "show", vm, t)
	}
	return lab.Encode(cc.App.Writer, format(cc), full)
}

// anyWith is the node whose word about a VM's spec counts: the primary's, or another one's that is reached.
func (s *site) anyWith(ctx context.Context, vm string) (*target, error) {
	t, halves, err := s.Route(ctx, vm)
	if errors.As(err, new(*both.ElsewhereError)) || errors.As(err, new(*both.AmbiguousError)) {
		for _, h := range halves {
			if h.Has() && h.Target != nil {
				return h.Target, nil
			}
		}
	}
	return t, err
}

func vmDelete(cc *cli.Context, s *site) error {
	vm := cc.Args().First()
	halves, err := s.Look(cc.Context, vm)
	if err != nil {
		return attempt(err, "delete", vm, nil)
	}
	// The newest first: the arbiter forgets the VM only for who knows its last generation.
	var known []*half
	for i := range halves {
		if h := &halves[i]; h.Has() && h.Target != nil {
			known = append(known, h)
		}
	}
	slices.SortStableFunc(known, both.NewerFirst)
	if cc.Bool("dry-run") {
		for _, h := range known {
			if err := h.Target.CheckDelete(cc.Context, vm); err != nil {
				return attempt(err, "delete (dry run)", vm, h.Target)
			}
			steps := []string{"let the arbiter forget the VM", "forget the VM; its disk images stay"}
			if cc.Bool("images") {
				steps[1] = "forget the VM"
				steps = append([]string{"delete its disk images"}, steps...)
			}
			if err := tellSteps(cc, vm, h.Target, "delete", steps); err != nil {
				return err
			}
		}
		return nil
	}
	word, what := "", "Forget "+vm+"? Its disk images stay."
	if cc.Bool("images") {
		word, what = vm, "The disk images of "+vm+" are deleted on: "+nodesOf(known)+"."
	}
	if err := confirm(cc, word, "%s\n%s", verdictLine(vm, both.Judge(halves)), what); err != nil {
		return err
	}
	var done []string
	for _, h := range known {
		if err := h.Target.Delete(cc.Context, vm, api.DeleteRequest{Images: cc.Bool("images"), Reason: cc.String("reason")}); err != nil {
			return attempt(err, "delete", vm, h.Target)
		}
		done = append(done, h.Node)
	}
	for _, h := range halves {
		if h.Target == nil && h.Has() || h.Err != nil && !errors.Is(h.Err, colo.ErrNoVM) {
			fmt.Fprintf(cc.App.ErrWriter, "coloctl: %s was not reached: delete %s there too\n", h.Node, vm)
		}
	}
	if f := format(cc); f != lab.FormatTable {
		return lab.Encode(cc.App.Writer, f, map[string]any{"vm": vm, "deleted_on": done})
	}
	images := "; its disk images stay"
	if cc.Bool("images") {
		images = ", and its disk images"
	}
	_, err = fmt.Fprintf(cc.App.Writer, "%s deleted on %s%s\n", vm, strings.Join(done, ", "), images)
	return err
}

func nodesOf(halves []*half) string {
	var out []string
	for _, h := range halves {
		out = append(out, h.Node)
	}
	return strings.Join(out, ", ")
}
