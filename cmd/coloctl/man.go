package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/coloctl/coloctl/internal/lab"
)

// manual is what the man page says besides the commands.
const manual = `coloctl speaks to the colod daemons of two hosts that run virtual machines together. Without a context it uses the unix socket of
the daemon on this host (` + defaultSocket + `). A command on a VM goes to the node where the VM runs, as far as the context reaches it.

Flags may stand before or after operands; **--** ends them. Data goes to standard output, everything said to people to standard error.

**Exit codes**: 0 done; 1 error; 2 wrong usage; 3 not running, or not protected; 4 refused by a precondition; 5 still going on at **--timeout**;
6 arbiter or fencing unavailable; 130 interrupted.

**Files**: contexts are in *$XDG_CONFIG_HOME/coloctl/contexts.yaml* (mode 0600), the certificate authority in *$XDG_CONFIG_HOME/coloctl/pki*.

**Environment**: **` + contextVariable + `** names the context; **VISUAL** and **EDITOR** the editor of vm edit.`

func manCommand(r rules) *cli.Command {
	return r.leaf(&cli.Command{Name: "man", Usage: "print the manual page: coloctl man | man -l -", Action: func(cc *cli.Context) error {
		app, rules := newApp(io.Discard, io.Discard)
		app.Description = manual
		app.UsageText = "coloctl COMMAND [FLAGS] [OPERANDS]"
		describeOperands(app.Commands, rules)
		page, err := app.ToManWithSection(8)
		if err != nil {
			return err
		}
		if f := format(cc); f != lab.FormatTable {
			return lab.Encode(cc.App.Writer, f, map[string]string{"page": page})
		}
		_, err = io.WriteString(cc.App.Writer, page)
		return err
	}}, operands{})
}

// describeOperands makes the page show what follows each command.
func describeOperands(commands []*cli.Command, r rules) {
	for _, c := range commands {
		if o, ok := r[c]; ok {
			c.UsageText = strings.TrimSpace(fmt.Sprintf("coloctl ... %s [FLAGS] %s", c.Name, o.usage))
		}
		describeOperands(c.Subcommands, r)
	}
}
