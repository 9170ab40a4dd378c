package main

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/coloctl/coloctl/internal/lab"
	"github.com/coloctl/coloctl/state"
)

func historyCommand(r rules) *cli.Command {
	return r.remote(&cli.Command{Name: "history", Usage: "print what happened to a VM, or to all, and who asked for it; it survives restarts", Flags: []cli.Flag{
		&cli.StringFlag{Name: "since", Usage: "only after this `TIME`, or for a span back from now, such as 24h"},
		&cli.IntFlag{Name: "limit", Aliases: []string{"n"}, Value: 100, Usage: "at most the last `N` of each node"},
	}, Action: withSite(history)}, operands{max: 1, usage: "[VM]"})
}

// nodeEntry is an entry of a node's history.
type nodeEntry struct {
	Node string `json:"node"`
	state.Entry
}

func history(cc *cli.Context, s *site) error {
	if err := positive("--limit", cc.Int("limit")); err != nil {
		return err
	}
	since, err := sinceTime(cc.String("since"), time.Now())
	if err != nil {
		return err
	}
	found := make([][]state.Entry, len(s.Nodes))
	errs := s.Each(func(i int, t *target) (err error) {
		found[i], err = t.History(cc.Context, cc.Args().First(), state.Query{Since: since, Limit: cc.Int("limit")})
		return err
	})
	if err := s.AllFailed(errs); err != nil {
		return attempt(err, "history of", cc.Args().First(), nil)
	}
	all := []nodeEntry{}
	for i, t := range s.Nodes {
		if errs[i] != nil {
			fmt.Fprintf(cc.App.ErrWriter, "coloctl: history of %s: %v\n", t, errs[i])
		}
		for _, e := range found[i] {
			all = append(all, nodeEntry{t.String(), e})
		}
	}
	slices.SortStableFunc(all, func(a, b nodeEntry) int { return a.Time.Compare(b.Time) })
	if f := format(cc); f != lab.FormatTable {
		return lab.Encode(cc.App.Writer, f, all)
	}
	w := table(cc.App.Writer, "TIME", "NODE", "VM", "GEN", "KIND", "WHAT")
	for _, e := range all {
		gen := ""
		if e.Generation > 0 {
			gen = strconv.FormatUint(e.Generation, 10)
		}
		w.row(e.Time.Local().Format("2006-01-02 15:04:05"), e.Node, e.VM, gen, e.Kind, e.Text)
	}
	return w.flush()
}
