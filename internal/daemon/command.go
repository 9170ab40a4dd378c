package daemon

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/config"
	"github.com/coloctl/coloctl/netcompare/comparer"
)

// Exit codes of the program. A service manager should not restart it after exitUsage.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2 // what was typed, or what the configuration says
)

const usage = `usage: %[1]s [run] [--config FILE]       run this node's daemon
       %[1]s check [--config FILE]       compare the configuration with this host
       %[1]s witness [--config FILE]     run a witness
       %[1]s witness check [--config FILE]
       %[1]s compare FOLDER              compare a VM's packets; started by the daemon
       %[1]s version
`

// Program is what a main adds to the daemon.
type Program struct {
	Name     string
	Version  string
	Arbiters map[string]ArbiterFunc // by kind, besides those that are built in
	// Launcher, if not nil, replaces QEMU: for tests.
	Launcher func(*config.Config) colo.Launcher
	Stdout   io.Writer // os.Stdout when nil
	Stderr   io.Writer // the log; os.Stderr when nil
}

// Main runs the program and returns its exit code.
func (p Program) Main(args []string) int {
	if p.Stdout == nil {
		p.Stdout = os.Stdout
	}
	if p.Stderr == nil {
		p.Stderr = os.Stderr
	}
	err := p.run(args)
	if err != nil && !errors.Is(err, errFindings) {
		_, _ = fmt.Fprintf(p.Stderr, "%s: %v\n", p.Name, err)
	}
	var u *usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &u), errors.As(err, new(*colo.InvalidSpecError)), errors.As(err, new(*colo.ConfigError)):
		return exitUsage
	}
	return exitError
}

// usageError is for what was typed.
type usageError struct{ msg string }

func (e *usageError) Error() string { return e.msg }

// errFindings is returned when a check has found something and said so.
var errFindings = errors.New("not all is well")

func (p Program) run(args []string) error {
	verb := "run"
	var rest []string
	switch {
	case len(args) > 1 && args[0] == "witness" && args[1] == "check":
		verb, rest = "witness check", args[2:]
	case len(args) > 0 && args[0] != "" && args[0][0] != '-':
		verb, rest = args[0], args[1:]
	default:
		rest = args
	}
	if verb == "run" && len(rest) == 1 && (rest[0] == "--version" || rest[0] == "-version") {
		verb, rest = "version", nil
	}
	file := "/etc/coloctl/colod.yaml"
	if verb == "witness" || verb == "witness check" {
		file = "/etc/coloctl/witness.yaml"
	}
	set := flag.NewFlagSet(p.Name, flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.StringVar(&file, "config", file, "")
	err := set.Parse(rest)
	if errors.Is(err, flag.ErrHelp) || verb == "help" {
		_, err := fmt.Fprintf(p.Stdout, usage, p.Name)
		return err
	}
	if err != nil {
		return &usageError{err.Error() + "\n" + fmt.Sprintf(usage, p.Name)}
	}
	if verb == "compare" {
		if set.NArg() != 1 {
			return &usageError{"compare needs the folder of a VM\n" + fmt.Sprintf(usage, p.Name)}
		}
		return p.signalled(func(ctx context.Context, _ <-chan os.Signal) error {
			return comparer.Run(ctx, set.Arg(0), slog.New(slog.NewTextHandler(p.Stderr, nil)))
		})
	}
	if set.NArg() > 0 {
		return &usageError{fmt.Sprintf("unexpected %q\n", set.Arg(0)) + fmt.Sprintf(usage, p.Name)}
	}
	switch verb {
	case "run":
		return p.signalled(func(ctx context.Context, hup <-chan os.Signal) error { return p.runNode(ctx, file, hup) })
	case "witness":
		return p.signalled(func(ctx context.Context, hup <-chan os.Signal) error { return p.runWitness(ctx, file, hup) })
	case "check":
		c, err := config.Load(file)
		if err != nil {
			return err
		}
		return p.report(c.Inspect())
	case "witness check":
		c, err := config.LoadWitness(file)
		if err != nil {
			return err
		}
		return p.report(c.Inspect())
	case "version":
		_, err := fmt.Fprintf(p.Stdout, "%s %s\n", p.Name, p.Version)
		return err
	}
	return &usageError{fmt.Sprintf("unknown command %q\n", verb) + fmt.Sprintf(usage, p.Name)}
}

// signalled runs do with a context that the first SIGTERM or SIGINT ends; the second one kills the process.
func (p Program) signalled(do func(context.Context, <-chan os.Signal) error) error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	end, hup := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, os.Interrupt)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	defer signal.Stop(end)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-end:
			signal.Reset(syscall.SIGTERM, os.Interrupt)
			stop()
		case <-ctx.Done():
		}
	}()
	err := do(ctx, hup)
	stop()
	<-watched
	return err
}

func (p Program) report(found []config.Finding) error {
	var err error
	for _, f := range found {
		word := "ok  "
		if !f.OK {
			word, err = "FAIL", errFindings
		}
		text := fmt.Sprintf("%s  %s: %s\n", word, f.Rule, f.Text)
		if !f.OK {
			text += fmt.Sprintf("      → %s\n", f.Remedy)
		}
		if _, werr := io.WriteString(p.Stdout, text); werr != nil {
			return werr
		}
	}
	return err
}
