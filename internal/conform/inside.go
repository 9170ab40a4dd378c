package conform

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/coloctl/coloctl/internal/lab"
)

const (
	envOptions = "COLOCTL_CONFORM"
	fileChecks = "checks.json" // in the lab's folder
)

// Start runs the calling program again in a lab's namespaces, with these arguments. There it has to call [Inside], whose checks are added to p.
func Start(ctx context.Context, o Options, args []string, p *Proof) error {
	text, err := json.Marshal(o)
	if err != nil {
		return err
	}
	f, err := lab.MakeFolder("")
	if err != nil {
		return err
	}
	err = lab.Start(ctx, f, lab.StartOptions{Args: args, Env: []string{envOptions + "=" + string(text)}, Stdout: os.Stderr, Stderr: os.Stderr})
	if err == nil {
		err = p.take(filepath.Join(f.Path, fileChecks))
	}
	return errors.Join(err, f.Remove())
}

// Inside runs the checks in the lab that Start has made.
func Inside(ctx context.Context) error {
	var o Options
	if err := json.Unmarshal([]byte(os.Getenv(envOptions)), &o); err != nil {
		return fmt.Errorf("%s: %w", envOptions, err)
	}
	o.Dir = lab.Path("c")
	var p Proof
	if err := Run(ctx, o, &p); err != nil {
		return err
	}
	text, err := json.Marshal(p.Checks)
	if err != nil {
		return err
	}
	return os.WriteFile(lab.Path(fileChecks), text, 0o600)
}

// take adds the checks that a file has.
func (p *Proof) take(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var checks []Check
	if err := json.Unmarshal(text, &checks); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, c := range checks {
		p.Checks = append(p.Checks, c)
		p.OK = p.OK && (c.OK || c.NotTried)
	}
	return nil
}
