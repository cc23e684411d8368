// Includes the header and calls nothing; run.sh looks at what gets linked.
#include <hypatia/hypatia.hpp>

int main() { return 0; }
