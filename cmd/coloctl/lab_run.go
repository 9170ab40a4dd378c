package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/coloctl/coloctl/internal/lab"
)

// plotName is the plot in the lab's folder; it is brought outside at the end.
const plotName = "plot.svg"

func runFlags() []cli.Flag {
	return labFlags(
		&cli.IntFlag{Name: "n", Value: 1, Usage: "how many times; of ping-pong, how many losses in one life of the VM"},
		&cli.Uint64Flag{Name: "seed", Usage: "`SEED` of what is random in the first run, the next ones take the next", DefaultText: "random"},
		&cli.DurationFlag{Name: "for", Usage: "how long the link of flap and slow-link is bad", DefaultText: "the scenario's"},
		&cli.StringFlag{Name: "plot", Usage: "draw what the clients of the last run felt to `FILE.svg`"},
		&cli.BoolFlag{Name: "keep", Usage: "keep the lab's folder, with its logs and disks, and print its path"},
		&cli.BoolFlag{Name: "keep-failed", Usage: "the same, of runs that are not ok only"},
	)
}

// labRun runs twice: as typed, and as the worker inside the lab that it has started.
func labRun(cc *cli.Context) error {
	s, err := lab.FindScenario(cc.Args().First())
	if err != nil {
		return err
	}
	if err := errors.Join(positive("-n", cc.Int("n")), checkLabFlags(cc)); err != nil {
		return err
	}
	if lab.Inside() {
		return runInside(cc, s)
	}
	plot := cc.String("plot")
	if cc.IsSet("plot") {
		if err := checkPlot(plot); err != nil {
			return err
		}
	}
	env, err := prepare(cc.Context, cc, s)
	if err != nil {
		return err
	}
	f, err := lab.MakeFolder("")
	if err != nil {
		return err
	}
	err = lab.Start(cc.Context, f, lab.StartOptions{Args: os.Args[1:], Env: env, Stdout: os.Stdout, Stderr: os.Stderr})
	if plot != "" {
		err = errors.Join(err, bringOut(filepath.Join(f.Path, plotName), plot))
	}
	if cc.Bool("keep") || err != nil && cc.Bool("keep-failed") {
		fmt.Fprintf(cc.App.ErrWriter, "the lab's folder is kept: %s\n", f.Path)
		return errors.Join(err, f.Keep())
	}
	return errors.Join(err, f.Remove())
}

// checkPlot finds out before anything is run whether the plot can be written.
func checkPlot(path string) error {
	if filepath.Ext(path) != ".svg" {
		return usagef("--plot %q: expected a file name that ends in .svg", path)
	}
	info, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return usagef("--plot %s: %w", path, err)
	}
	if !info.IsDir() {
		return usagef("--plot %s: %s is not a folder", path, filepath.Dir(path))
	}
	return nil
}

// bringOut copies a file that a lab has made. A lab that made none has said why.
func bringOut(from, to string) error {
	in, err := os.Open(from)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

var errRunFailed = errors.New("not ok")

func runInside(cc *cli.Context, s *lab.Scenario) error {
	assets, err := lab.InheritedAssets()
	if err != nil {
		return err
	}
	seed := cc.Uint64("seed")
	if !cc.IsSet("seed") {
		seed = rand.Uint64N(1 << 32)
	}
	lives, cycles := cc.Int("n"), 1
	if s.Cycles {
		lives, cycles = 1, lives
	}
	var results []lab.Result
	failed := 0
	for i := range lives {
		r, err := oneLife(cc, s, lab.RunOptions{
			Seed: seed + uint64(i), Params: lab.Params{N: cycles, For: cc.Duration("for")},
			Lab: labOptions(cc, assets, lab.Path(fmt.Sprint(i+1))),
		})
		if err != nil {
			return err
		}
		if results = append(results, *r.Result); !r.Result.OK {
			failed++
		}
		if f := format(cc); f != lab.FormatTable {
			if err := lab.Encode(cc.App.Writer, f, r.Result); err != nil {
				return err
			}
		}
		if i == lives-1 && cc.String("plot") != "" {
			if err := plot(r); err != nil {
				return err
			}
		}
	}
	if format(cc) == lab.FormatTable {
		write := lab.WriteTable
		if s.Told { // what it measured was told
			write = lab.WriteErrors
		}
		if err := write(cc.App.Writer, results); err != nil {
			return err
		}
	}
	if failed > 0 {
		return fmt.Errorf("%s: %d of %d runs: %w", s.Name, failed, lives, errRunFailed)
	}
	return nil
}

// oneLife runs a scenario once, in a folder of its own that doesn't outlive it unless it is to be kept.
func oneLife(cc *cli.Context, s *lab.Scenario, o lab.RunOptions) (*lab.Run, error) {
	if err := os.Mkdir(o.Lab.Dir, 0o700); err != nil {
		return nil, err
	}
	if o.Tell = teller(cc, s); o.Tell != nil && !s.Told {
		o.Tell.Say("%s, seed %d", s.Name, o.Seed)
	}
	r, err := s.Execute(cc.Context, o)
	failed := err != nil || !r.Result.OK
	if cc.Bool("keep") || failed && cc.Bool("keep-failed") {
		return r, err
	}
	if failed {
		said, e := lab.Account(o.Lab.Dir)
		fmt.Fprint(cc.App.ErrWriter, said)
		err = errors.Join(err, e)
	}
	return r, errors.Join(err, os.RemoveAll(o.Lab.Dir))
}

// teller tells what happens: a story on standard output, of which it is the point, and any other scenario beside its results.
func teller(cc *cli.Context, s *lab.Scenario) *lab.Teller {
	switch {
	case format(cc) != lab.FormatTable:
		return nil
	case s.Told:
		return lab.NewTeller(cc.App.Writer, terminal(os.Stdout))
	default:
		return lab.NewTeller(cc.App.ErrWriter, terminal(os.Stderr))
	}
}

func terminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

func plot(r *lab.Run) error {
	f, err := os.Create(lab.Path(plotName))
	if err != nil {
		return err
	}
	err = r.Plot(f)
	return errors.Join(err, f.Close())
}
