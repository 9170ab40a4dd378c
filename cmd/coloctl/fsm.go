package main

import (
	"github.com/urfave/cli/v2"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/internal/lab"
)

func fsmCommand(r rules) *cli.Command {
	return r.leaf(&cli.Command{Name: "fsm", Usage: "print the state machine that each VM follows on each node", Flags: []cli.Flag{
		&cli.BoolFlag{Name: "dot", Usage: "as a graph for Graphviz: coloctl fsm --dot | dot -Tsvg"},
	}, Action: func(cc *cli.Context) error {
		if cc.Bool("dot") {
			return colo.WriteDot(cc.App.Writer)
		}
		type row struct {
			From  colo.State     `json:"from"`
			Event colo.EventKind `json:"event"`
			Guard string         `json:"guard,omitempty"`
			To    colo.State     `json:"to"`
			Plan  colo.PlanKind  `json:"plan,omitempty"`
			Why   string         `json:"why,omitempty"`
		}
		var all []row
		for _, t := range colo.Transitions() {
			all = append(all, row{t.From, t.Event, t.Guard, t.To, t.Plan, t.Why})
		}
		if f := format(cc); f != lab.FormatTable {
			return lab.Encode(cc.App.Writer, f, all)
		}
		w := table(cc.App.Writer, "FROM", "EVENT", "IF", "TO", "PLAN", "WHY")
		for _, t := range all {
			w.row(string(t.From), string(t.Event), t.Guard, string(t.To), string(t.Plan), t.Why)
		}
		return w.flush()
	}}, operands{})
}
