// Command matrix runs "coloctl doctor --prove" with the QEMU of each release of Debian that there is one of, and writes what each can do into
// docs/compatibility.md, between the lines that say so. It is what make matrix does.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/internal/conform"
	"github.com/coloctl/coloctl/internal/provision"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "matrix:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("matrix", flag.ContinueOnError)
	coloctl := flags.String("coloctl", "bin/coloctl", "the `PROGRAM` that proves")
	alone := flags.Bool("alone", false, "leave out the scenarios with a guest")
	doc := flags.String("doc", "docs/compatibility.md", "`FILE` that is written to")
	if err := flags.Parse(args); err != nil {
		return err
	}
	text, err := os.ReadFile(*doc)
	if err != nil {
		return err
	}
	if _, err := replace(string(text), ""); err != nil { // before minutes are spent
		return fmt.Errorf("%s: %w", *doc, err)
	}
	var columns []column
	for _, release := range provision.Releases {
		tools, err := provision.Release(ctx, release, provision.Options{Out: out})
		if err != nil {
			return err
		}
		p, err := prove(ctx, *coloctl, tools, *alone, out)
		if err != nil {
			return fmt.Errorf("QEMU %s: %w", tools.Version, err)
		}
		columns = append(columns, column{release, p})
	}
	whole, err := replace(string(text), table(columns))
	if err != nil {
		return err
	}
	return os.WriteFile(*doc, []byte(whole), 0o644) //nolint:gosec // a page for everybody
}

// prove runs coloctl. That a QEMU can't protect is an answer, not an error.
func prove(ctx context.Context, coloctl string, tools *provision.Tools, alone bool, out io.Writer) (*conform.Proof, error) {
	cmd := exec.CommandContext(ctx, coloctl, "doctor", "--prove", fmt.Sprintf("--alone=%v", alone), "-o", "json")
	cmd.Env = append(os.Environ(), provision.QEMUVariable+"="+tools.QEMU[0], provision.QEMUImgVariable+"="+tools.QEMUImg[0])
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, out
	ended := cmd.Run()
	var p conform.Proof
	if err := json.Unmarshal(said.Bytes(), &p); err != nil {
		return nil, errors.Join(ended, err)
	}
	if p.OK != (ended == nil) {
		return nil, fmt.Errorf("it says ok=%v and ends with %w", p.OK, ended)
	}
	return &p, nil
}

// column is what one QEMU can do.
type column struct {
	release string
	proof   *conform.Proof
}

const (
	begin = "<!-- from here to the next such line: written by make matrix -->"
	end   = "<!-- written by make matrix until here -->"
)

// replace puts text between the lines that mark its place.
func replace(page, text string) (string, error) {
	before, rest, ok := strings.Cut(page, begin+"\n")
	_, after, ended := strings.Cut(rest, end+"\n")
	if !ok || !ended {
		return "", errors.New("the lines are missing between which the table stands")
	}
	return before + begin + "\n" + text + end + "\n" + after, nil
}

// table has a row for each check, in the order of the QEMU that has most, which is the newest.
func table(columns []column) string {
	var b strings.Builder
	row := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	head, line := []string{"QEMU, Debian's package in"}, []string{"---"}
	for _, c := range columns {
		head, line = append(head, fmt.Sprintf("%s, %s, %s", c.proof.QEMU, c.release, c.proof.Accel)), append(line, "---")
	}
	fmt.Fprintln(&b)
	row(head)
	row(line)
	for _, rule := range rules(columns) {
		cells := []string{title(rule)}
		for _, c := range columns {
			cells = append(cells, cell(c.proof, rule))
		}
		row(cells)
	}
	verdict := []string{"**protects VMs**"}
	for _, c := range columns {
		verdict = append(verdict, map[bool]string{true: "**yes**", false: "**no**"}[c.proof.OK])
	}
	row(verdict)
	fmt.Fprintln(&b)
	return b.String()
}

// about is what the table leaves out: it is said in its head.
var about = map[string]bool{"qemu starts": true, "accelerator": true}

// rules are those of all columns. Of a scenario only the whole counts here: its figures are the machine's, not QEMU's.
func rules(columns []column) []string {
	var all []string
	seen := map[string]bool{}
	for i := range columns {
		for _, c := range columns[len(columns)-1-i].proof.Checks {
			_, part, ofScenario := strings.Cut(c.Rule, ": ")
			if !seen[c.Rule] && !about[c.Rule] && (!ofScenario || part == conform.Whole) {
				all = append(all, c.Rule)
			}
			seen[c.Rule] = true
		}
	}
	return all
}

// title is a rule as a reader of the page knows it.
func title(rule string) string {
	if name, part, _ := strings.Cut(rule, ": "); part == conform.Whole {
		return "with a guest: scenario `" + name + "`"
	}
	return rule
}

func cell(p *conform.Proof, rule string) string {
	for _, c := range p.Checks {
		text := strings.ReplaceAll(strings.Join(strings.Fields(c.Text), " "), "|", "/")
		switch {
		case c.Rule != rule:
		case c.OK && rule == conform.Capabilities, c.NotTried:
			return text
		case c.OK:
			return "yes"
		default:
			return "**no**: " + strings.TrimSuffix(text, ":")
		}
	}
	return "not tried"
}
