package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/coloctl/coloctl/internal/lab"
)

// operands says how many a command takes; max -1 is any number.
type operands struct {
	min, max int
	usage    string
	// command says that what follows the first operand belongs to another program: it is left as it is.
	command bool
}

// rules remembers the operands of every command made by leaf.
type rules map[*cli.Command]operands

// leaf finishes a command that does something: exact operands, -o, --timeout, and exit code 2 for what was typed wrongly.
func (r rules) leaf(c *cli.Command, o operands) *cli.Command {
	c.ArgsUsage = o.usage
	c.HideHelpCommand = true
	c.OnUsageError = onUsageError
	if !o.command {
		c.Flags = append(c.Flags, outputFlag())
	}
	c.Flags = append(c.Flags, &cli.DurationFlag{Name: "timeout", Usage: "give up after this time (0: never)", DefaultText: "0"})
	action := c.Action
	c.Action = func(cc *cli.Context) error {
		n := cc.NArg()
		if n < o.min || o.max >= 0 && n > o.max {
			return usagef("%s: expected %s, got %d operands: %q", cc.Command.HelpName, o.describe(), n, cc.Args().Slice())
		}
		if !o.command {
			if _, err := lab.ParseFormat(cc.String("output")); err != nil {
				return &usageError{err}
			}
		}
		if limit := cc.Duration("timeout"); limit > 0 {
			cause := fmt.Errorf("%s: %w of %v", cc.Command.HelpName, errTimeout, limit)
			ctx, cancel := context.WithTimeoutCause(cc.Context, limit, cause)
			defer cancel()
			cc.Context = ctx
			err := action(cc)
			if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil && !errors.Is(err, errTimeout) {
				return fmt.Errorf("%w: %w", cause, err) // whatever was waited for doesn't know why it ended
			}
			return err
		} else if limit < 0 {
			return usagef("--timeout %v: expected 0 or more", limit)
		}
		return action(cc)
	}
	r[c] = o
	return c
}

func (o operands) describe() string {
	if o.usage == "" {
		return "no operands"
	}
	return o.usage
}

// group is a command that only holds others.
func group(c *cli.Command) *cli.Command {
	c.HideHelpCommand = true
	c.OnUsageError = onUsageError
	c.Action = groupAction
	return c
}

func groupAction(cc *cli.Context) error {
	if cc.Args().Present() {
		return usagef("unknown command %q; see: %s --help", cc.Args().First(), commandName(cc))
	}
	return cli.ShowSubcommandHelp(cc)
}

// badValue is how the flag package tells of a value that doesn't fit a flag's type.
var badValue = regexp.MustCompile(`^invalid (?:boolean )?value "(.*)" for (?:flag )?-([^:]+): `)

func onUsageError(cc *cli.Context, err error, _ bool) error {
	if bad := badValue.FindStringSubmatch(err.Error()); bad != nil {
		if want := expected(cc, bad[2]); want != "" {
			err = fmt.Errorf("%s%s %s: expected %s", strings.Repeat("-", min(2, len(bad[2]))), bad[2], bad[1], want)
		}
	}
	return usagef("%s: %w; see: %s --help", commandName(cc), err, commandName(cc))
}

// expected says what a flag's values are.
func expected(cc *cli.Context, name string) string {
	flags := cc.App.Flags
	if cc.Command != nil {
		flags = slices.Concat(cc.Command.Flags, flags)
	}
	for _, f := range flags {
		if !slices.Contains(f.Names(), name) {
			continue
		}
		switch f.(type) {
		case *cli.DurationFlag:
			return "a time, such as 90s, 10m or 24h"
		case *cli.IntFlag, *cli.Int64Flag:
			return "a whole number"
		case *cli.UintFlag, *cli.Uint64Flag:
			return "a whole number that is not negative"
		case *cli.BoolFlag:
			return "true or false"
		}
	}
	return ""
}

func outputFlag() cli.Flag {
	return &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "table", Usage: "print as table, json or yaml"}
}

func format(cc *cli.Context) lab.Format { return lab.Format(cc.String("output")) }

// reorder puts a command's flags before its operands, where the flag package wants them: it takes flags behind an operand silently as
// further operands otherwise. What follows "--" is an operand whatever it looks like.
func (r rules) reorder(app *cli.App, args []string) []string {
	if len(args) == 0 {
		return args
	}
	var command *cli.Command
	commands, i := app.Commands, 1
	for ; i < len(args); i++ {
		next := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(args[i]) })
		if next < 0 {
			break
		}
		command = commands[next]
		commands = command.Subcommands
	}
	if command == nil {
		return args
	}
	o, known := r[command]
	if !known {
		return args
	}
	flags, rest := slices.Clone(args[:i]), []string(nil)
	for ; i < len(args); i++ {
		arg := args[i]
		switch {
		case arg == "--":
			rest = append(rest, args[i+1:]...)
			i = len(args)
		case len(arg) > 1 && arg[0] == '-':
			flags = append(flags, arg)
			if takesValue(command, arg) && i+1 < len(args) {
				i++
				flags = append(flags, args[i])
			}
		case o.command: // our flags may still come behind the host; what comes then is the other program's
			rest = append(rest, arg)
			for i++; i < len(args) && owns(command, args[i]); i++ {
				flags = append(flags, args[i])
				if takesValue(command, args[i]) && i+1 < len(args) {
					i++
					flags = append(flags, args[i])
				}
			}
			if i < len(args) {
				rest = append(rest, args[i:]...)
			}
			i = len(args)
		default:
			rest = append(rest, arg)
		}
	}
	return append(append(flags, "--"), rest...)
}

// owns tells whether an argument is one of the command's flags.
func owns(c *cli.Command, arg string) bool {
	name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	if len(arg) < 2 || arg[0] != '-' || name == "" {
		return false
	}
	return name == "help" || name == "h" || slices.ContainsFunc(c.Flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), name) })
}

// takesValue tells whether the flag's value is the next argument.
func takesValue(c *cli.Command, arg string) bool {
	name := strings.TrimLeft(arg, "-")
	if strings.Contains(name, "=") {
		return false
	}
	for _, f := range c.Flags {
		if slices.Contains(f.Names(), name) {
			d, ok := f.(cli.DocGenerationFlag)
			return ok && d.TakesValue()
		}
	}
	return false
}

// positive is for durations and counts that must not be less than one.
func positive(name string, n int) error {
	if n < 1 {
		return usagef("%s %d: expected 1 or more", name, n)
	}
	return nil
}
