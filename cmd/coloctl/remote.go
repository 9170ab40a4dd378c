package main

import (
	"time"

	"github.com/urfave/cli/v2"
)

// remote finishes a command that asks the daemons of a context.
func (r rules) remote(c *cli.Command, o operands) *cli.Command {
	c.Flags = append(c.Flags,
		&cli.StringFlag{Name: "context", EnvVars: []string{contextVariable}, Usage: "`NAME` of the context to use (see: coloctl context list)"},
		&cli.StringFlag{Name: "node", Usage: "ask this `NODE` only"})
	return r.leaf(c, o)
}

// change finishes a command that changes something on the nodes.
func (r rules) change(c *cli.Command, o operands) *cli.Command {
	c.Flags = append(c.Flags,
		&cli.BoolFlag{Name: "dry-run", Usage: "say what would be done, and do nothing"},
		&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "don't ask for a confirmation"},
		&cli.StringFlag{Name: "reason", Usage: "`TEXT` for the history: why this is done"})
	return r.remote(c, o)
}

// operation finishes a command that begins something that goes on by itself.
func (r rules) operation(c *cli.Command, o operands) *cli.Command {
	c.Flags = append(c.Flags,
		&cli.BoolFlag{Name: "wait", Value: true, Usage: "wait for the end (what it does unless told otherwise)"},
		&cli.BoolFlag{Name: "no-wait", Usage: "print the operation's id and return; see: coloctl wait"})
	return r.change(c, o)
}

func waits(cc *cli.Context) bool { return cc.Bool("wait") && !cc.Bool("no-wait") }

// withSite runs do with the nodes that the command line means.
func withSite(do func(*cli.Context, *site) error) cli.ActionFunc {
	return func(cc *cli.Context) error {
		c, err := chosenContext(cc.String("context"))
		if err != nil {
			return err
		}
		s, err := openSite(cc.Context, c, cc.String("node"))
		if err != nil {
			return err
		}
		defer s.Close()
		return do(cc, s)
	}
}

// short prints a time span for people: two units at most.
func short(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	case d < 100*time.Millisecond:
		return d.Round(100 * time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	case d < 48*time.Hour:
		text := d.Round(time.Minute).String()
		return text[:len(text)-2] // without 0s
	}
	return days(d)
}

func days(d time.Duration) string {
	n := int(d.Hours()) / 24
	return plural(n, "day")
}
