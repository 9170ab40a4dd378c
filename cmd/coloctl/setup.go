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

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/colo/config"
	"github.com/coloctl/coloctl/internal/lab"
	"github.com/coloctl/coloctl/internal/setup"
)

const (
	etcFolder  = "/etc/coloctl"
	keysFolder = "/etc/coloctl/site"
	// setupLimit is how long setup waits for the other machines unless told otherwise.
	setupLimit = time.Minute
)

func setupCommand(r rules) *cli.Command {
	flags := func(more ...cli.Flag) []cli.Flag {
		return append(more,
			&cli.StringFlag{Name: "etc", Value: etcFolder, Usage: "`FOLDER` for this host's configuration", TakesFile: true},
			&cli.BoolFlag{Name: "dry-run", Usage: "say what would be done, and do nothing"},
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "don't ask for a confirmation"})
	}
	join := r.leaf(&cli.Command{Name: "join", Usage: "make this host the machine that a bundle of coloctl setup describes (- reads standard input)",
		Flags: flags(), Action: setupJoin}, operands{min: 1, max: 1, usage: "BUNDLE"})
	return r.leaf(&cli.Command{Name: "setup", Usage: "take two hosts and a witness to a protected VM, as a file describes them, or by questions",
		Flags: flags(
			&cli.StringFlag{Name: "file", Aliases: []string{"f"}, Usage: "`FILE` that describes the site; without it you are asked, and site.yaml is written", TakesFile: true},
			&cli.StringFlag{Name: "keys", Value: keysFolder, Usage: "`FOLDER` of the authority, keys and bundles", TakesFile: true},
			&cli.StringFlag{Name: "here", Usage: "this host is the `MACHINE` of that name; none: it is only where keys are made (default: by its addresses)"},
			&cli.DurationFlag{Name: "wait", Value: setupLimit, Usage: "how long to wait for machines that don't answer yet"}),
		Action: setupSite, Subcommands: []*cli.Command{join}}, operands{})
}

// thisHost is how setup changes this host.
func thisHost(cc *cli.Context) setup.Host {
	_, err := os.Stat("/run/systemd/system")
	return setup.Host{Etc: cc.String("etc"), Systemd: err == nil && cc.String("etc") == etcFolder,
		Examine: func(ctx context.Context, c *config.Config, w *config.WitnessConfig) []config.Finding {
			if w != nil {
				return w.Inspect()
			}
			var f findings
			f.examineAlone(ctx, c)
			return f
		}}
}

// preflight examines the host and refuses what can't work. What only makes things worse is said.
func preflight(cc *cli.Context, h setup.Host, b *setup.Bundle) error {
	if err := h.Refuse(b); err != nil {
		return err
	}
	found, err := h.Examined(cc.Context, b)
	if err != nil {
		return err
	}
	var bad []string
	for _, f := range found {
		switch {
		case f.OK:
		case f.Rule == "mptcp":
			fmt.Fprintf(cc.App.ErrWriter, "note: %s: %s (%s)\n", f.Rule, f.Text, f.Remedy)
		default:
			bad = append(bad, fmt.Sprintf("%s: %s\n      -> %s", f.Rule, f.Text, f.Remedy))
		}
	}
	if len(bad) > 0 {
		return &taskError{"set up " + b.Machine, fmt.Errorf("%w, nothing was changed:\n  %s", setup.ErrUnfit, strings.Join(bad, "\n  ")), "remedy this, then give the command again"}
	}
	fmt.Fprintf(cc.App.ErrWriter, "%s: %s about this host are as they should be\n", b.Machine, plural(len(found), "thing"))
	return nil
}

// tellPlan prints what is to be done and what is done already, and says whether anything is left.
func tellPlan(cc *cli.Context, p setup.Plan) (left bool, err error) {
	states := p.States()
	for _, s := range states {
		left = left || !s.Done
	}
	if f := format(cc); f != lab.FormatTable {
		if cc.Bool("dry-run") {
			return left, lab.Encode(cc.App.Writer, f, states)
		}
		return left, nil
	}
	for _, s := range states {
		mark := "will "
		if s.Done {
			mark = "done "
		}
		fmt.Fprintf(cc.App.Writer, "%s %s\n", mark, s.What)
	}
	return left, nil
}

// carryOut tells, asks and does. It returns false if nothing was to be done or it was a dry run.
func carryOut(cc *cli.Context, p setup.Plan) (bool, error) {
	left, err := tellPlan(cc, p)
	switch {
	case err != nil, cc.Bool("dry-run"):
		return false, err
	case !left:
		fmt.Fprintln(cc.App.ErrWriter, "nothing is left to do")
		return false, nil
	}
	if err := confirm(cc, "", "Do this?"); err != nil {
		return false, err
	}
	return true, p.Run(cc.Context, func(what string) { fmt.Fprintf(cc.App.ErrWriter, "-> %s\n", what) })
}

func setupJoin(cc *cli.Context) error {
	in := cc.App.Reader
	if file := cc.Args().First(); file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	b, err := setup.ReadBundle(in)
	if err != nil {
		return attempt(err, "read "+cc.Args().First(), "", nil)
	}
	h := thisHost(cc)
	if err := preflight(cc, h, b); err != nil {
		return err
	}
	done, err := carryOut(cc, h.Join(b))
	if err != nil {
		return attempt(err, "set up "+b.Machine, "", nil)
	}
	if !h.Systemd && done {
		fmt.Fprintf(cc.App.ErrWriter, "next: start colod, with its configuration in %s\n", h.Etc)
	}
	if f := format(cc); f != lab.FormatTable && !cc.Bool("dry-run") {
		return lab.Encode(cc.App.Writer, f, map[string]any{"machine": b.Machine, "changed": done})
	}
	return nil
}

func setupSite(cc *cli.Context) error {
	file := cc.String("file")
	if file == "" {
		var err error
		if file, err = askSite(cc); err != nil {
			return err
		}
	}
	s, err := setup.LoadSite(file)
	if err != nil {
		return err
	}
	spec, text, err := firstVM(s)
	if err != nil {
		return err
	}
	here, err := hereOf(cc, s)
	if err != nil {
		return err
	}
	keys := setup.Keys{Dir: cc.String("keys")}
	p := keys.Plan(s)
	h := thisHost(cc)
	by := map[string]string{}
	machines := s.Machines()
	slices.Reverse(machines) // the witness first: nodes look for it when they start
	for _, m := range machines {
		switch target := s.SSH(m); {
		case m == here:
			p = append(p, setup.Step{What: "make this host " + m + ": examine it, write " + h.Etc + ", start its service", Done: func() bool { return joined(keys, s, h, m) },
				Do: func(ctx context.Context) error { return joinHere(cc, keys, s, h, m) }})
		case target != "":
			p = append(p, setup.Step{What: "make " + target + " " + m + " over ssh: examine it, write " + etcFolder + ", start its service", Done: func() bool { return answers(cc.Context, keys, s, m) },
				Do: func(ctx context.Context) error {
					b, err := keys.Bundle(s, m)
					if err != nil {
						return err
					}
					return setup.Deliver(ctx, target, b, indented{cc.App.ErrWriter})
				}})
		default:
			by[m] = keys.BundleFile(m)
		}
	}
	p = append(p, contextStep(keys, s))
	if spec == nil {
		p = append(p, setup.Step{What: "see that all machines answer", Do: func(context.Context) error { return await(cc, keys, s, by) }})
	} else {
		p = append(p, setup.Step{What: "see that all machines answer, then create, start and protect the VM " + spec.Name,
			Done: func() bool { return vmDone(cc.Context, keys, s, spec, text) },
			Do: func(ctx context.Context) error {
				if err := await(cc, keys, s, by); err != nil {
					return err
				}
				return runVM(cc, keys, s, spec, text)
			}})
	}
	done, err := carryOut(cc, p)
	if f := format(cc); err == nil && f != lab.FormatTable && !cc.Bool("dry-run") {
		return lab.Encode(cc.App.Writer, f, map[string]any{"site": s.Name, "changed": done})
	}
	if err == nil && done && spec != nil {
		fmt.Fprintf(cc.App.ErrWriter, "%s is protected; see: coloctl status %s\nto see COLO at work on this host, with its own QEMU: coloctl doctor --prove\n", spec.Name, spec.Name)
	}
	return err
}

// indented sets what another host says apart.
type indented struct{ w io.Writer }

func (i indented) Write(p []byte) (int, error) {
	for line := range strings.Lines(string(p)) {
		if _, err := io.WriteString(i.w, "   | "+line); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

func firstVM(s *setup.Site) (*colo.Spec, api.SpecText, error) {
	if s.VM == "" {
		return nil, api.SpecText{}, nil
	}
	data, err := os.ReadFile(s.VM)
	if err != nil {
		return nil, api.SpecText{}, err
	}
	spec, err := colo.ParseSpec(data, s.VM)
	return spec, api.SpecText{YAML: data, File: s.VM, Reason: "coloctl setup"}, err
}

func hereOf(cc *cli.Context, s *setup.Site) (string, error) {
	switch here := cc.String("here"); {
	case here == "none":
		return "", nil
	case here == "":
		return s.Here()
	case !slices.Contains(s.Machines(), here):
		return "", usagef("--here %s: the site has %s", here, strings.Join(s.Machines(), ", "))
	default:
		return here, nil
	}
}

// joined says whether this host is the machine already.
func joined(keys setup.Keys, s *setup.Site, h setup.Host, machine string) bool {
	b, err := keys.Bundle(s, machine)
	if err != nil {
		return false
	}
	for _, st := range h.Join(b).States() {
		if !st.Done {
			return false
		}
	}
	return true
}

func joinHere(cc *cli.Context, keys setup.Keys, s *setup.Site, h setup.Host, machine string) error {
	b, err := keys.Bundle(s, machine)
	if err != nil {
		return err
	}
	if err := preflight(cc, h, b); err != nil {
		return err
	}
	return h.Join(b).Run(cc.Context, func(what string) { fmt.Fprintf(cc.App.ErrWriter, "   %s\n", what) })
}

// answers says whether a machine is there and all is well with it; a change of its configuration makes its bundle new, which is not seen here.
func answers(ctx context.Context, keys setup.Keys, s *setup.Site, machine string) bool {
	clients, err := keys.Connect(s)
	if err != nil {
		return false
	}
	defer clients.Close()
	if s.Witness != nil && machine == s.Witness.Name { // its word is the nodes'
		return len(clients.Unready(ctx, s)) == 0
	}
	for i, n := range s.Nodes {
		if n.Name == machine {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			_, err := clients[i].Node(ctx)
			return err == nil
		}
	}
	return false
}

// contextStep makes the nodes the ones that this person's commands speak to.
func contextStep(keys setup.Keys, s *setup.Site) setup.Step {
	c := nodesContext{Name: s.Name, Identity: keys.Identity(setup.Admin), Trust: keys.Trust()}
	for _, n := range s.Nodes {
		c.Nodes = append(c.Nodes, contextNode{n.Name, s.Addresses(n)})
	}
	return setup.Step{What: "make both nodes the context " + s.Name + " of coloctl, and use it",
		Done: func() bool {
			f, err := readContexts()
			if err != nil || f.current() != s.Name {
				return false
			}
			have, err := f.find(s.Name)
			return err == nil && have.where() == c.where() && have.Identity == c.Identity && have.Trust == c.Trust
		},
		Do: func(context.Context) error {
			f, err := readContexts()
			if err != nil {
				return err
			}
			f.Contexts = append(slices.DeleteFunc(f.Contexts, func(o nodesContext) bool { return o.Name == c.Name }), c)
			f.Current = c.Name
			return f.write()
		}}
}

// await waits for the machines; what a person has yet to do on others is said.
func await(cc *cli.Context, keys setup.Keys, s *setup.Site, by map[string]string) error {
	clients, err := keys.Connect(s)
	if err != nil {
		return err
	}
	defer clients.Close()
	ctx, cancel := context.WithTimeout(cc.Context, cc.Duration("wait"))
	defer cancel()
	left, err := clients.Await(ctx, s)
	if err == nil {
		return nil
	}
	if cc.Err() != nil {
		return cc.Err()
	}
	next := "when they are well, give the same command again: it goes on from here"
	if len(by) > 0 {
		var lines []string
		for _, m := range s.Machines() {
			if by[m] != "" {
				lines = append(lines, fmt.Sprintf("bring %s to %s and give there: coloctl setup join %s.tar", by[m], m, m))
			}
		}
		next = strings.Join(append(lines, "then give the same command again here: it goes on from here"), "\n        ")
	}
	return &taskError{"", fmt.Errorf("%w:\n  %s", errUnfinished, strings.Join(left, "\n  ")), next}
}

// errUnfinished is returned when other machines are not as they should be yet.
var errUnfinished = errors.New("not all machines are ready yet")

func vmDone(ctx context.Context, keys setup.Keys, s *setup.Site, spec *colo.Spec, text api.SpecText) bool {
	clients, err := keys.Connect(s)
	if err != nil {
		return false
	}
	defer clients.Close()
	states := clients.VM(ctx, spec, text, nil).States()
	return states[len(states)-1].Done
}

func runVM(cc *cli.Context, keys setup.Keys, s *setup.Site, spec *colo.Spec, text api.SpecText) error {
	clients, err := keys.Connect(s)
	if err != nil {
		return err
	}
	defer clients.Close()
	var say *reporter
	err = clients.VM(cc.Context, spec, text, func(op api.Operation) { say.operation(op) }).Run(cc.Context, func(what string) {
		if say != nil {
			say.end()
		}
		say = newReporter(cc)
		fmt.Fprintf(cc.App.ErrWriter, "   %s\n", what)
	})
	if say != nil {
		say.end()
	}
	return err
}
