package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/internal/lab"
)

func contextCommand(r rules) *cli.Command {
	return group(&cli.Command{Name: "context", Usage: "which nodes this program speaks to", Subcommands: []*cli.Command{
		r.leaf(&cli.Command{Name: "list", Usage: "list the contexts", Action: contextList}, operands{}),
		r.leaf(&cli.Command{Name: "use", Usage: "make a context the one that is used when none is named", Action: contextUse},
			operands{min: 1, max: 1, usage: "CONTEXT"}),
		r.leaf(&cli.Command{Name: "add", Usage: "add a context, or replace it with --replace", Flags: []cli.Flag{
			&cli.StringFlag{Name: "socket", Usage: "`PATH` of the unix socket of a daemon on this machine"},
			&cli.StringSliceFlag{Name: "node", Usage: "`NAME=HOST:PORT[,HOST:PORT]` of a node; once for each node"},
			&cli.StringFlag{Name: "identity", Usage: "own key and certificate `FILE`, made by: coloctl pki issue"},
			&cli.StringFlag{Name: "trust", Usage: "`FILE` with the trusted authority; ca.crt beside the identity if left out"},
			&cli.BoolFlag{Name: "replace", Usage: "replace a context of this name"},
			&cli.BoolFlag{Name: "use", Usage: "use it from now on"},
		}, Action: contextAdd}, operands{min: 1, max: 1, usage: "NAME"}),
		r.leaf(&cli.Command{Name: "remove", Usage: "forget a context", Action: contextRemove}, operands{min: 1, max: 1, usage: "CONTEXT"}),
	}})
}

func contextList(cc *cli.Context) error {
	f, err := readContexts()
	if err != nil {
		return err
	}
	type entry struct {
		nodesContext
		Current bool `json:"current"`
	}
	all := []entry{}
	for _, c := range f.all() {
		all = append(all, entry{c, c.Name == f.current()})
	}
	if f := format(cc); f != lab.FormatTable {
		return lab.Encode(cc.App.Writer, f, all)
	}
	w := table(cc.App.Writer, "", "NAME", "WHERE")
	for _, c := range all {
		mark := ""
		if c.Current {
			mark = "*"
		}
		w.row(mark, c.Name, c.where())
	}
	return w.flush()
}

func contextUse(cc *cli.Context) error {
	f, err := readContexts()
	if err != nil {
		return err
	}
	c, err := f.find(cc.Args().First())
	if err != nil {
		return err
	}
	f.Current = c.Name
	if err := f.write(); err != nil {
		return err
	}
	return tellContext(cc, c)
}

// tellContext prints what a command did to a context.
func tellContext(cc *cli.Context, c *nodesContext) error {
	if f := format(cc); f != lab.FormatTable {
		return lab.Encode(cc.App.Writer, f, c)
	}
	_, err := fmt.Fprintf(cc.App.Writer, "%s: %s\n", c.Name, c.where())
	return err
}

func contextAdd(cc *cli.Context) error {
	c := nodesContext{Name: cc.Args().First(), Socket: cc.String("socket"), Identity: cc.String("identity"), Trust: cc.String("trust")}
	for _, text := range cc.StringSlice("node") {
		name, addresses, ok := strings.Cut(text, "=")
		if !ok {
			return usagef("--node %s: expected NAME=HOST:PORT", text)
		}
		c.Nodes = append(c.Nodes, contextNode{name, strings.Split(addresses, ",")})
	}
	if c.Trust == "" && c.Identity != "" {
		c.Trust = filepath.Join(filepath.Dir(c.Identity), pki.TrustFile)
	}
	for _, p := range []*string{&c.Socket, &c.Identity, &c.Trust} {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	if err := c.validate(); err != nil {
		return &usageError{err}
	}
	if c.Identity != "" {
		if _, err := pki.Load(pki.Files{Identity: c.Identity, Trust: c.Trust}); err != nil {
			return err
		}
	}
	f, err := readContexts()
	if err != nil {
		return err
	}
	switch i := slices.IndexFunc(f.Contexts, func(o nodesContext) bool { return o.Name == c.Name }); {
	case i < 0:
		f.Contexts = append(f.Contexts, c)
	case cc.Bool("replace"):
		f.Contexts[i] = c
	default:
		return fmt.Errorf("context %s %w; to replace it: --replace", c.Name, errExists)
	}
	if cc.Bool("use") {
		f.Current = c.Name
	}
	if err := f.write(); err != nil {
		return err
	}
	return tellContext(cc, &c)
}

func contextRemove(cc *cli.Context) error {
	f, err := readContexts()
	if err != nil {
		return err
	}
	name := cc.Args().First()
	i := slices.IndexFunc(f.Contexts, func(c nodesContext) bool { return c.Name == name })
	if i < 0 {
		if name == localContext {
			return usagef("the context %s is always there", localContext)
		}
		_, err := f.find(name)
		return err
	}
	gone := f.Contexts[i]
	f.Contexts = slices.Delete(f.Contexts, i, i+1)
	if f.Current == name {
		f.Current = ""
	}
	if err := f.write(); err != nil {
		return err
	}
	return tellContext(cc, &gone)
}
