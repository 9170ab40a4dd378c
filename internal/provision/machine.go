package provision

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// MinMajor is the least major version of QEMU that Ensure takes. Older ones
// deadlock at a checkpoint under TCG; under KVM some are said to work, but were
// never seen to.
const MinMajor = 11

// colo are the types that a QEMU built with COLO has.
var colo = []string{"colo-compare", "filter-mirror", "filter-redirector", "filter-rewriter"}

// machineQEMU returns the machine's own QEMU, or why it is not taken.
func machineQEMU(ctx context.Context) (*Tools, error) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return nil, errors.New("there is none")
	}
	img, err := exec.LookPath("qemu-img")
	if err != nil {
		return nil, errors.New("there is no qemu-img")
	}
	version, err := qemuVersion(ctx, qemu)
	if err != nil {
		return nil, err
	}
	if err := fit(ctx, qemu, version); err != nil {
		return nil, err
	}
	return &Tools{QEMU: []string{qemu}, QEMUImg: []string{img}, Version: version, Source: SourceMachine}, nil
}

func fit(ctx context.Context, qemu, version string) error {
	major, err := strconv.Atoi(strings.SplitN(version, ".", 2)[0])
	if err != nil {
		return fmt.Errorf("version %q: %w", version, err)
	}
	if major < MinMajor {
		return fmt.Errorf("%s is version %s, %d is needed", qemu, version, MinMajor)
	}
	types, err := command(ctx, qemu, "-object", "help").Output()
	if err != nil {
		return fmt.Errorf("%s -object help: %w", qemu, err)
	}
	for _, name := range colo {
		if !strings.Contains(string(types), name) {
			return fmt.Errorf("%s was built without COLO (no %s)", qemu, name)
		}
	}
	return nil
}

var versionText = regexp.MustCompile(`version ([0-9]+\.[0-9]+\.[0-9]+)`)

// qemuVersion runs QEMU and returns its version, as in "11.1.3".
func qemuVersion(ctx context.Context, qemu string) (string, error) {
	output, err := command(ctx, qemu, "--version").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w: %s", qemu, err, strings.TrimSpace(string(output)))
	}
	m := versionText.FindSubmatch(output)
	if m == nil {
		return "", fmt.Errorf("%s --version says %q", qemu, strings.TrimSpace(string(output)))
	}
	return string(m[1]), nil
}
