// Command coloctl is the operator's command line. It is thin: it reads what was typed, calls a package and prints what came back.
//
// Flags are accepted before and after operands; "--" ends them. Every command is made by [rules.leaf], which holds the rules that all of them
// follow. What went wrong becomes a message in [run] and an exit code in [exitCode], and nowhere else.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/coloctl/coloctl/internal/lab"
)

func main() {
	lab.Main()
	// The second signal ends the program the hard way.
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		<-signals
		cancel(lab.ErrInterrupted)
		signal.Stop(signals)
	}()
	os.Exit(run(ctx, os.Args, os.Stdout, os.Stderr))
}

// run is the whole program but for its process.
func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	args = asked(args)
	app, r := newApp(out, errOut)
	if len(args) > 1 && args[len(args)-1] == completeFlag {
		r.complete(ctx, app, args[1:len(args)-1], out)
		return exitOK
	}
	err := app.RunContext(ctx, r.reorder(app, args))
	var goesOn *taskError
	said := errors.Is(err, lab.ErrInterrupted) && errors.As(err, &goesOn)
	if err != nil && errors.Is(context.Cause(ctx), lab.ErrInterrupted) && !said {
		err = lab.ErrInterrupted // whatever it broke
	}
	var exit *lab.ExitError
	switch {
	case err == nil, errors.As(err, &exit): // a lab's process has said it already
	case errors.Is(err, errNotProtected): // the status has said it
	case errors.Is(err, lab.ErrInterrupted) && lab.Inside(): // its starter says it
	case said && goesOn.next != "": // what was begun goes on
		fmt.Fprintf(errOut, "coloctl: %s\n", message(err))
	case errors.Is(err, lab.ErrInterrupted):
		fmt.Fprintln(errOut, "coloctl: interrupted")
	default:
		fmt.Fprintf(errOut, "coloctl: %s\n", message(err))
	}
	return exitCode(err)
}

func newApp(out, errOut io.Writer) (*cli.App, rules) {
	r := rules{}
	return &cli.App{
		Name: "coloctl", Usage: "keeps a virtual machine running on two hosts",
		Writer: out, ErrWriter: errOut, HideVersion: true, HideHelpCommand: true,
		Commands: slices.Concat([]*cli.Command{setupCommand(r), statusCommand(r), vmCommand(r), diskCommand(r)}, protectionCommands(r), []*cli.Command{
			eventsCommand(r), historyCommand(r), nodeCommand(r), waitCommand(r), cancelCommand(r), doctorCommand(r), contextCommand(r), pkiCommand(r),
			labCommand(r), fsmCommand(r), completionCommand(r), manCommand(r), versionCommand(r),
		}),
		// An address of a node may hold commas.
		DisableSliceFlagSeparator: true,
		// Both decide on exit codes by themselves otherwise, and the first not by what an error wraps.
		ExitErrHandler: func(*cli.Context, error) {},
		OnUsageError:   onUsageError,
		Action:         groupAction,
	}, r
}
