// The rate limiter, with its settings from a file: a password in the environment shows in
// `docker inspect` and in /proc; set from within the process it does not.
package main

import (
	"log"
	"os"
	"strings"

	"github.com/envoyproxy/ratelimit/src/service_cmd/runner"
	"github.com/envoyproxy/ratelimit/src/settings"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: ratelimit SETTINGS")
	}
	content, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	for _, line := range strings.Split(string(content), "\n") {
		if key, value, found := strings.Cut(line, "="); found && !strings.HasPrefix(line, "#") {
			os.Setenv(strings.TrimSpace(key), strings.TrimSpace(value))
		}
	}
	limiter := runner.NewRunner(settings.NewSettings())
	limiter.Run()
}
